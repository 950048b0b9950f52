// View 2, generation: any strategy, streamed; each token with its probability, its alternatives, and the cut tokens.

import { html } from "render/html.js";
import { Token, percent, readable } from "render/tokens.js";
import { Alternatives } from "render/trace_view.js";
import { outputTokens } from "render/trace_model.js";
import { GenerationView, bodyOf } from "app/parts.js";

/** Further outputs of the same prompt. */
function Outputs({ outputs }) {
	return html`<details><summary>${outputs.length} outputs</summary><ol>${outputs.map((each) =>
		html`<li key=${each.index}><bdi>${readable(each.text, 400)}</bdi> <span class="num">${each.logprob?.toFixed(2)}</span></li>`)}</ol></details>`;
}

/** @param {ViewProps} props */
export function GenerateView(props) {
	const { facts, state, update } = props;
	const inside = ({ run, model, begin }) => {
		if (!run.done || !model) return null;
		const tokens = outputTokens(model, 0);
		const pick = state.pick ?? -1;
		const chosen = tokens[pick];
		const branch = (best) => {
			/** @type {any} */
			const path = [...(run.body.path ? state.path : []), ...tokens.slice(0, pick).map(({ node }) => [node.token, node.text.slice(0, 60)]), [best.token, best.text.slice(0, 60)]];
			update({ path, pick: null, run: true });
			begin(bodyOf({ ...state, path }));
		};
		return html`${run.done.completions.length > 1 && html`<${Outputs} outputs=${run.done.completions} />`}
			${chosen ? html`<section class="details" aria-label="Alternatives"><h3><${Token} text=${chosen.text} />
					<small> token ${pick + 1}: model ${percent(chosen.probability)}, drawn ${percent(chosen.processed)}</small></h3>
					<${Alternatives} row=${chosen.row} token=${chosen.node.token} onPick=${facts.model.takes_path ? branch : undefined} />
					<p class="note">Choose one to branch from there.</p></section>`
				: html`<p class="note">Hover over a token, or move to it with Tab and the arrow keys, to see its alternatives.</p>`}`;
	};
	return html`<${GenerationView} ...${props} kind="generate" label="Generated text" selected=${state.pick} onSelect=${(pick) => update({ pick })}
		empty="Run a strategy to see its text, and the alternatives of each token." body=${inside} />`;
}
