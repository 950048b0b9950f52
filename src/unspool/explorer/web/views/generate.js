// View 2, generation: any strategy, streamed; each token with its probability, its alternatives, and the cut tokens.

import { html } from "render/html.js";
import { number, readable } from "render/tokens.js";
import { ChosenToken } from "render/trace_view.js";
import { outputTokens } from "render/trace_model.js";
import { GenerationView, bodyOf } from "app/parts.js";

/** @param {ViewProps} props */
export function GenerateView(props) {
	const { facts, state, update } = props;
	const inside = ({ run, model, begin }) => {
		if (!run.done || !model) return null;
		const outputs = run.done.completions;
		const tokens = outputTokens(model, 0);
		const pick = state.pick ?? -1;
		const branch = (best) => {
			/** @type {any} */
			const path = [...(run.body.path ? state.path : []), ...tokens.slice(0, pick).map(({ node }) => [node.token, node.text.slice(0, 60)]), [best.token, best.text.slice(0, 60)]];
			update({ path, pick: null, run: true });
			begin(bodyOf({ ...state, path }));
		};
		return html`${outputs.length > 1 && html`<details><summary>${outputs.length} outputs</summary><ol>${outputs.map((each) =>
				html`<li key=${each.index}><bdi>${readable(each.text, 400)}</bdi> <span class="num">${number(each.logprob, 2)}</span></li>`)}</ol></details>`}
			<${ChosenToken} tokens=${tokens} pick=${pick} onPick=${facts.model.takes_path ? branch : undefined} />`;
	};
	return html`<${GenerationView} ...${props} kind="generate" label="Generated text" selected=${state.pick} onSelect=${(pick) => update({ pick })}
		empty="Run a strategy to see its text, and the alternatives of each token." body=${inside} />`;
}
