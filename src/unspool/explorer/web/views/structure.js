// View 6, structured output: the tokens that a grammar allows at each step.

import { Problem, html, useEffect } from "render/html.js";
import { AllowedStrip, AllowedTokens, allowedCounts } from "render/steps.js";
import { useAnswer } from "app/running.js";
import { GenerationView } from "app/parts.js";

/** The tokens of a result, and the allowed tokens at the chosen one. */
function Allowed({ run, model, facts, state, update }) {
	const { answer, error, send } = useAnswer("explore/position");
	const tokens = allowedCounts(model, facts.model.vocab_size);
	const pick = Math.min(state.pick ?? 0, tokens.length - 1);
	const ids = run.done.completions[0].token_ids.slice(0, pick);
	const body = { ...run.body, tokens: ids, limit: 60 };
	useEffect(() => void send(body), [JSON.stringify(body)]);
	return html`<${AllowedStrip} tokens=${tokens} vocabSize=${facts.model.vocab_size} selected=${pick} onSelect=${(index) => update({ pick: index })} />
		<p class="note">Below each token: how many the grammar allowed there. Choose one to see them.</p>
		<${Problem} message=${error?.message} />
		${answer?.allowed && html`<${AllowedTokens} answer=${answer} chosen=${tokens[pick]?.node.token ?? null} />`}`;
}

export function StructureView(props) {
	return html`<${GenerationView} ...${props} strategies=${["greedy", "sample", "beam", "beam_sample"]} first=${["regex", "json_schema"]} kind="generate" label="Structure"
		empty="Give a regular expression or a JSON schema, and run."
		body=${({ run, model }) => run.done && model?.trace.outputs.length > 0 && html`<${Allowed} ...${props} run=${run} model=${model} />`} />`;
}
