// View 1, the next token: the distribution before and after the processors, with sliders; a walk by hand.

import { Problem, html, useEffect, withValue } from "render/html.js";
import { DistributionChart } from "render/distribution.js";
import { Token, number, readable } from "render/tokens.js";
import { TreeItems } from "render/tree_items.js";
import { useAnswer } from "app/running.js";
import { walkTo } from "app/state.js";
import { Copy } from "app/snippets.js";
import { Prompt } from "app/parts.js";

/** Sliders: name, least, greatest, step, value that is off. */
const SLIDERS = [
	["temperature", 0.05, 3, 0.05, 1],
	["top_k", 0, 100, 1, 0],
	["top_p", 0.01, 1, 0.01, 1],
	["min_p", 0, 1, 0.01, 0],
	["typical_p", 0.01, 1, 0.01, 1],
	["repetition_penalty", 0.5, 2, 0.05, 1],
	["presence_penalty", -2, 2, 0.1, 0],
	["frequency_penalty", -2, 2, 0.1, 0],
];
const COUNTED = ["presence_penalty", "frequency_penalty"];

/** The options of a call: penalties also count the tokens of the prompt, because everything here is the prompt. */
export function nextOptions(given) {
	return COUNTED.some((name) => name in given) ? { ...given, penalty_scope: "prompt_and_output" } : given;
}

/** @param {{ slider: any[], value: number | undefined, help: string, onChange: (value: number | undefined) => void }} props */
function Slider({ slider: [name, low, high, step, off], value, help, onChange }) {
	const now = value ?? off;
	const change = ({ target }) => {
		const next = Number(target.value);
		if (target.value !== "" && !Number.isNaN(next)) onChange(next === off ? undefined : next);
	};
	return html`<div class=${`slider ${value === undefined ? "" : "set"}`} title=${help}><label for=${`slide-${name}`}>${name}</label>
		<input id=${`slide-${name}`} type="range" min=${low} max=${high} step=${step} value=${now} onInput=${change} aria-valuetext=${value === undefined ? "off" : String(now)} />
		<input type="number" aria-label=${`${name}, as a number`} min=${low} step=${step} value=${now} onChange=${change} />
		<button class="off" disabled=${value === undefined} aria-label=${`Turn ${name} off`} onClick=${() => onChange(undefined)}>off</button></div>`;
}

/** @param {ViewProps} props */
export function NextView({ facts, state, update }) {
	const { answer, asked, ms, error, send } = useAnswer("explore/next");
	const path = walkTo(state.tree, state.at);
	const body = { prompt: state.prompt, ...(path.length ? { path: path.map(([token]) => token) } : {}), options: nextOptions(state.next) };
	const wanted = JSON.stringify(body);
	useEffect(() => void send(body), [wanted]);
	const pick = (entry) => {
		const known = state.tree.findIndex((node) => node[0] === state.at && node[1] === entry.token_id);
		if (known >= 0) return update({ at: known });
		return update({ tree: [...state.tree, [state.at, entry.token_id, entry.text.slice(0, 60)]], at: state.tree.length });
	};
	const undo = () => update({ at: state.at < 0 ? -1 : state.tree[state.at][0] });
	const help = (name) => facts.options.find((each) => each.name === name)?.help ?? "";
	return html`<div class="two"><section class="side" aria-label="Prompt and options">
			<${Prompt} value=${state.prompt} onInput=${(prompt) => update({ prompt, tree: [], at: -1 })} />
			<div class="sliders">${SLIDERS.map((slider) => html`<${Slider} key=${slider[0]} slider=${slider} value=${state.next[slider[0]]} help=${help(slider[0])}
				onChange=${(value) => update({ next: withValue(state.next, slider[0], value) })} />`)}</div>
			<p class="note">Penalties count the tokens of the prompt and of your walk. Hover over a name for its meaning.</p>
		</section>
		<section class="main" aria-label="Next tokens">
			<div class="path"><span>${readable(state.prompt, 300)}</span>${path.map(([token, text], index) =>
				html`<bdi class="chosen" key=${index} data-token=${token}>${readable(text, 60)}</bdi>`)}<span class="caret" aria-hidden="true"></span></div>
			<div class="bar-of-buttons"><button disabled=${state.at < 0} onClick=${undo}>Undo</button>
				<button disabled=${!state.tree.length} onClick=${() => update({ tree: [], at: -1 })}>Start again</button>
				${answer && html`<span class="facts"><span data-ms=${ms}>${ms.toFixed(0)} ms</span> ·
					entropy ${number(answer.entropy, 2)} → ${number(answer.processed_entropy, 2)} nats</span>`}</div>
			<${Problem} message=${error?.message} />
			${answer ? html`<div class=${asked === wanted ? "" : "stale"} aria-busy=${asked !== wanted}>
					<${DistributionChart} key=${answer.prompt_tokens.length} data=${answer} onPick=${pick} label="Next tokens; choose one to append it" /></div>`
				: !error && html`<p class="loading">Asking the model …</p>`}
			${state.tree.length > 0 && html`<h3>Your walk</h3><p class="note">← parent · → child · ↑ ↓ siblings</p>
				<${TreeItems} kind="walk" label="Tokens that you chose" root=${-1} selected=${state.at} onGo=${(at) => update({ at })} look=${(id) => `${id} ${state.tree[id]}`}
					childrenOf=${(id) => state.tree.flatMap(([parent], index) => (parent === id ? [index] : []))}
					content=${(id) => (id < 0 ? "prompt" : html`<${Token} text=${state.tree[id][2]} limit=${24} />`)} />`}
			${answer && html`<${Copy} made=${answer.snippets} />`}
		</section></div>`;
}
