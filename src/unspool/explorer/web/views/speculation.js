// View 5, speculative decoding: drafted, accepted and rejected tokens.

import { html } from "render/html.js";
import { Drafts } from "render/drafts.js";
import { GenerationView } from "app/parts.js";

export function SpeculationView(props) {
	return html`<${GenerationView} ...${props} strategies=${["assisted"]} first=${["do_sample"]} kind="trace" label="Drafts"
		empty="Run speculative decoding to see which drafted tokens the model accepts. The text is the same as without drafts."
		body=${({ run, model }) => run.done && model && html`<${Drafts} model=${model} forward=${run.done.usage.forward_passes} />`} />`;
}
