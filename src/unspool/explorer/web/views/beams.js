// View 3, the beam tree: it grows live, and can be played, stepped and scrubbed.

import { html } from "render/html.js";
import { TraceView } from "render/trace_view.js";
import { GenerationView } from "app/parts.js";

const STRATEGIES = ["beam", "diverse_beam", "constrained_beam", "stochastic_beam", "beam_sample"];

/** @param {ViewProps} props */
export function BeamsView(props) {
	const { state, update } = props;
	return html`<${GenerationView} ...${props} strategies=${STRATEGIES} kind="trace" label="Beam tree"
		empty="Run a search to see its tree grow."
		body=${({ run, model }) => model && html`<${TraceView} model=${model} step=${(run.busy ? null : state.step) ?? Infinity}
			onStep=${(step) => update({ step })} />`} />`;
}
