// Parts that several views share.

import { Problem, html, instead } from "render/html.js";
import { TokenText, exp, number, readable } from "render/tokens.js";
import { OptionsForm, optionsFor } from "app/options_form.js";
import { useRun } from "app/running.js";
import { Copy } from "app/snippets.js";

/** @param {{ value: string, onInput: (prompt: string) => void }} props */
export function Prompt({ value, onInput }) {
	return html`<div class="field"><label for="prompt">prompt</label>
		<textarea id="prompt" rows="3" dir="auto" spellcheck=${false} value=${value}
			onInput=${({ target }) => onInput(target.value)}></textarea></div>`;
}

/** The tokens behind the prompt that a branch starts from. */
export function Path({ path, onChange }) {
	if (!path.length) return null;
	return html`<div class="pathbox"><p class="note">Continues these ${path.length} tokens:</p>
		<p class="text">${readable(path.map(([, text]) => text).join(""), 400)}</p>
		<div class="bar-of-buttons"><button type="button" onClick=${() => onChange(path.slice(0, -1))}>Remove the last</button>
			<button type="button" onClick=${() => onChange([])}>Remove all</button></div></div>`;
}

/** The button that runs, the button that stops, and the seed. */
export function RunBar({ busy, seed, update, onStop }) {
	return html`<div class="runbar"><button type="submit" class="primary" disabled=${busy}>${busy ? "Running …" : "Run"}</button>
		${busy && html`<button type="button" onClick=${onStop}>Stop</button>`}
		<label for="seed">seed</label><input id="seed" type="number" step="1" value=${seed} onInput=${({ target }) => update({ seed: Math.trunc(Number(target.value)) || 0 })} />
		<button type="button" title="Another seed" onClick=${() => update({ seed: seed + 1 })}>+1</button></div>`;
}

/** The body of a generation. @param {import("../app/state.js").State} state */
export function bodyOf(state) {
	return { prompt: state.prompt, ...(state.path.length ? { path: state.path.map(([token]) => token) } : {}),
		options: { strategy: state.strategy, ...state.options, seed: state.seed } };
}

/** Facts about a result in one line. */
function Facts({ done }) {
	const { usage, timing, completions, strategy } = done;
	const [best] = completions;
	return html`<p class="facts" role="status"><strong>${strategy}</strong> · ${usage.completion_tokens} tokens · ${usage.forward_passes} passes ·
		${" "}${timing.seconds.toFixed(2)} s · log-probability <span data-logprob=${best.logprob}>${number(best.logprob, 2)}</span> · ended by ${best.finish_reason}</p>`;
}

/** The tokens of the first output so far. @returns {Piece[]} */
export function piecesOf({ done, chunks = /** @type {any[]} */ ([]) }) {
	const best = done?.completions[0];
	if (best) return best.token_ids.map((id, index) => ({ text: best.tokens[index] ?? `<id ${id}>`, probability: exp(best.logprobs[index]) }));
	return chunks.filter((each) => each.index === 0).flatMap((each) => each.tokens.map((text, index) => ({ text, probability: exp(each.logprobs[index]) })));
}

/**
 * A view with one generation: on the left prompt, seed, strategy and options; on the right its text, facts and body.
 * @param {ViewProps & { strategies?: string[], first?: string[], kind: "generate" | "trace", label: string, empty: string,
 *   onSelect?: (index: number) => void, selected?: number | null, body: (now: { run: any, model: any, begin: any }) => any }} props
 */
export function GenerationView({ facts, state, update, strategies, first, kind, label, empty, onSelect, selected = null, body }) {
	const { run, model, begin, stop } = useRun(state.run, bodyOf(state));
	const { error, done } = run;
	const named = error?.param && facts.options.some((row) => row.name === error.param);
	const pieces = piecesOf(run);
	const go = () => {
		update({ run: true, step: null, pick: null });
		begin(bodyOf(state));
	};
	return html`<div class="two"><form class="side" aria-label="Prompt and options" onSubmit=${instead(go)}>
			<${Prompt} value=${state.prompt} onInput=${(prompt) => update({ prompt, path: [], pick: null })} />
			<${Path} path=${state.path} onChange=${(path) => update({ path, pick: null })} />
			<${RunBar} busy=${run.busy} seed=${state.seed} update=${update} onStop=${stop} />
			<${Problem} message=${!named && error?.message} />
			<${OptionsForm} key=${state.strategy} facts=${facts} strategy=${state.strategy} strategies=${strategies} first=${first} values=${state.options} error=${error}
				onChange=${(options) => update({ options })}
				onStrategy=${(strategy) => update({ strategy, options: optionsFor(facts, strategy, state.options), step: null })} /></form>
		<section class="main" aria-label=${label} aria-busy=${run.busy}>
			${pieces.length || run.busy || done ? html`<div class="words"><${TokenText} pieces=${pieces} selected=${selected} tail=${run.tentative} before=${run.body.prompt}
					onSelect=${done && onSelect} /></div>
					<p class="key note"><span class="ramp"></span> stronger: less probable <span class="tail">grey: tentative</span></p>`
				: html`<p class="empty">${empty}</p>`}
			${done && html`<${Facts} done=${done} />`}
			${body({ run, model, begin })}
			${done && html`<${Copy} made=${run.start.snippets[kind]} />`}
		</section></div>`;
}
