// View 4, comparison: up to six strategies or settings on one prompt, in one batch.

import { html, useEffect, useRef, useState } from "render/html.js";
import { TokenText, number } from "render/tokens.js";
import { ask } from "app/api.js";
import { Prompt, RunBar, piecesOf } from "app/parts.js";
import { OptionsForm, optionsFor } from "app/options_form.js";
import { Copy } from "app/snippets.js";

const MOST = 6;
/** Columns: title, field of the figures, digits. */
/** @type {[string, string, number][]} */
const FIGURES = [["log-prob. per token", "mean_logprob", 3], ["distinct-1", "distinct_1", 3], ["distinct-2", "distinct_2", 3], ["rep-3", "rep_3", 3], ["tokens", "num_tokens", 0]];

/** The first entries of a comparison. */
export const ENTRIES = [
	{ name: "greedy", strategy: "greedy", options: {} },
	{ name: "beam", strategy: "beam", options: { num_beams: 4 } },
	{ name: "top_p", strategy: "sample", options: { temperature: 0.8, top_p: 0.9 } },
];

/** @param {import("../types").State} state */
const bodyOf = ({ prompt, entries, tokens, seed }) => ({ prompt, options: { max_new_tokens: tokens, seed },
	entries: Object.fromEntries(entries.map(({ name, strategy, options }) => [name, { strategy, ...options }])) });

export function CompareView({ facts, state, update }) {
	const [found, setFound] = useState(/** @type {any} */ ({ busy: false, error: null, answer: null }));
	const controller = useRef(/** @type {any} */ (null));
	const entries = state.entries.length ? state.entries : ENTRIES;
	const set = (index, patch) => update({ entries: entries.map((each, at) => (at === index ? { ...each, ...patch } : each)) });
	const run = async () => {
		const body = bodyOf({ ...state, entries });
		const own = new AbortController();
		controller.current?.abort();
		controller.current = own;
		update({ run: true, entries });
		setFound({ busy: true, error: null, answer: null });
		const next = await ask("explore/compare", body, own.signal).then((answer) => ({ answer, error: null }), (error) => ({ answer: null, error }));
		if (controller.current === own) setFound({ busy: false, ...next });
	};
	useEffect(() => {
		if (state.run) run();
		return () => controller.current?.abort();
	}, []);
	const add = () => {
		const name = [1, 2, 3, 4, 5, 6].map((place) => `entry ${place}`).find((each) => entries.every((entry) => entry.name !== each));
		update({ entries: [...entries, { name, strategy: "sample", options: {} }] });
	};
	const { answer, error, busy } = found;
	return html`<div class="view two"><form class="side" aria-label="Prompt and entries" onSubmit=${(event) => {
			event.preventDefault();
			run();
		}}>
			<${Prompt} value=${state.prompt} onInput=${(prompt) => update({ prompt })} />
			<${RunBar} busy=${busy} seed=${state.seed} update=${update} onStop=${() => {
				controller.current?.abort();
				setFound({ ...found, busy: false });
			}} />
			<div class="field"><label for="tokens">max_new_tokens</label><input id="tokens" type="number" min="1" value=${state.tokens}
				onInput=${({ target }) => update({ tokens: Math.max(1, Math.trunc(Number(target.value)) || 1) })} /></div>
			${error && error.name !== "AbortError" && html`<p class="error" role="alert">${error.message}</p>`}
			${entries.map((entry, index) => html`<details class="entry" key=${index}><summary>${entry.name} <small>${entry.strategy}${Object.entries(entry.options).map(([name, value]) => `, ${name} ${JSON.stringify(value)}`)}</small></summary>
				<${OptionsForm} key=${entry.strategy} prefix=${`e${index}-`} facts=${facts} strategy=${entry.strategy} values=${entry.options} error=${null}
					onChange=${(options) => set(index, { options })} onStrategy=${(strategy) => set(index, { strategy, options: optionsFor(facts, strategy, entry.options) })} />
				<button type="button" disabled=${entries.length < 2} onClick=${() => update({ entries: entries.filter((_, at) => at !== index) })}>Remove ${entry.name}</button></details>`)}
			<button type="button" disabled=${entries.length >= MOST} onClick=${add}>Add an entry</button>
		</form>
		<section class="main" aria-label="Comparison">
			${answer ? html`<p class="facts" role="status"><strong>${answer.rows.length} entries</strong> in one batch · <span data-seconds=${answer.seconds}>${answer.seconds.toFixed(2)} s</span></p>
				<div class="scroll" tabindex="0" role="region" aria-label="Figures"><table class="figuretable"><thead><tr><th>entry</th>${FIGURES.map(([title]) => html`<th key=${title}>${title}</th>`)}<th>passes</th></tr></thead>
					<tbody>${answer.rows.map(({ name, figures, generation }) => html`<tr key=${name}><th scope="row">${name}</th>${FIGURES.map(([title, field, digits]) =>
						html`<td class="num" key=${title} data-figure=${field} data-value=${figures[field]}>${number(figures[field], digits)}</td>`)}
						<td class="num">${generation.usage.forward_passes}</td></tr>`)}</tbody></table></div>
				${answer.rows.map(({ name, generation }) => html`<article key=${name}><h3>${name} <small>${generation.strategy}, ended by ${generation.completions[0].finish_reason}</small></h3>
					<div class="output"><${TokenText} pieces=${piecesOf({ done: generation })} /></div></article>`)}
				<${Copy} made=${answer.snippets} />`
			: html`<p class="empty">${busy ? "Running …" : "Run up to six strategies or settings on one prompt, in one batch."}</p>`}
		</section></div>`;
}
