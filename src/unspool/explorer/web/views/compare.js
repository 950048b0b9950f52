// View 4, comparison: up to six strategies or settings on one prompt, in one batch.

import { Problem, html, instead, useEffect } from "render/html.js";
import { TokenText, number, settings } from "render/tokens.js";
import { Prompt, RunBar, piecesOf } from "app/parts.js";
import { useAnswer } from "app/running.js";
import { OptionsForm, optionsFor } from "app/options_form.js";
import { Copy } from "app/snippets.js";

const MOST = 6;
/** Columns: title, field of the figures, digits if not 3. */
/** @type {[string, string, number?][]} */
const FIGURES = [["log-prob. per token", "mean_logprob"], ["distinct-1", "distinct_1"], ["distinct-2", "distinct_2"], ["rep-3", "rep_3"], ["tokens", "num_tokens", 0]];

/** @param {import("../types").State} state */
const bodyOf = ({ prompt, entries, tokens, seed }) => ({ prompt, options: { max_new_tokens: tokens, seed },
	entries: Object.fromEntries(entries.map(({ name, strategy, options }) => [name, { strategy, ...options }])) });

export function CompareView({ facts, state, update }) {
	const { answer, error, busy, send, stop } = useAnswer("explore/compare");
	const entries = state.entries.length ? state.entries : facts.entries;
	const set = (index, patch) => update({ entries: entries.map((each, at) => (at === index ? { ...each, ...patch } : each)) });
	const run = () => {
		update({ run: true, entries });
		send(bodyOf({ ...state, entries }));
	};
	useEffect(() => void (state.run && run()), []);
	const add = () => {
		const name = [1, 2, 3, 4, 5, 6].map((place) => `entry ${place}`).find((name) => !entries.some((each) => each.name === name));
		update({ entries: [...entries, { name, strategy: "sample", options: {} }] });
	};
	return html`<div class="two"><form class="side" aria-label="Prompt and entries" onSubmit=${instead(run)}>
			<${Prompt} value=${state.prompt} onInput=${(prompt) => update({ prompt })} />
			<${RunBar} busy=${busy} seed=${state.seed} update=${update} onStop=${stop} />
			<div class="field"><label for="tokens">max_new_tokens</label><input id="tokens" type="number" min="1" value=${state.tokens}
				onInput=${({ target }) => update({ tokens: Math.max(1, Math.trunc(Number(target.value)) || 1) })} /></div>
			<${Problem} message=${error?.message} />
			${entries.map((entry, index) => html`<details class="entry" key=${index}><summary>${entry.name} <small>${entry.strategy}${settings(entry.options).map((each) => `, ${each}`)}</small></summary>
				<${OptionsForm} key=${entry.strategy} prefix=${`e${index}-`} facts=${facts} strategy=${entry.strategy} values=${entry.options} error=${null}
					onChange=${(options) => set(index, { options })} onStrategy=${(strategy) => set(index, { strategy, options: optionsFor(facts, strategy, entry.options) })} />
				<button type="button" disabled=${entries.length < 2} onClick=${() => update({ entries: entries.filter((_, at) => at !== index) })}>Remove ${entry.name}</button></details>`)}
			<button type="button" disabled=${entries.length >= MOST} onClick=${add}>Add an entry</button>
		</form>
		<section class="main" aria-label="Comparison">
			${answer && !busy ? html`<p class="facts" role="status"><strong>${answer.rows.length} entries</strong> in one batch · <span data-seconds=${answer.seconds}>${answer.seconds.toFixed(2)} s</span></p>
				<div class="scroll" tabindex="0" role="region" aria-label="Figures"><table class="figuretable"><thead><tr><th>entry</th>${FIGURES.map(([title]) => html`<th key=${title}>${title}</th>`)}<th>passes</th></tr></thead>
					<tbody>${answer.rows.map(({ name, figures, generation }) => html`<tr key=${name}><th scope="row">${name}</th>${FIGURES.map(([title, field, digits]) =>
						html`<td class="num" key=${title} data-figure=${field} data-value=${figures[field]}>${number(figures[field], digits)}</td>`)}
						<td class="num">${generation.usage.forward_passes}</td></tr>`)}</tbody></table></div>
				${answer.rows.map(({ name, generation }) => html`<article key=${name}><h3>${name} <small>${generation.strategy}, ended by ${generation.completions[0].finish_reason}</small></h3>
					<div class="words"><${TokenText} pieces=${piecesOf({ done: generation })} /></div></article>`)}
				<${Copy} made=${answer.snippets} />`
			: html`<p class="empty">${busy ? "Running …" : "Run up to six strategies or settings on one prompt, in one batch."}</p>`}
		</section></div>`;
}
