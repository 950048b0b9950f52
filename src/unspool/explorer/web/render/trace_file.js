// A trace as one file without a server: its outputs with the alternatives of each token, its drafts, and its tree.

import { html, render, useState } from "render/html.js";
import { TokenText, number, settings } from "render/tokens.js";
import { Drafts, passesOf } from "render/drafts.js";
import { Theme } from "render/theme.js";
import { ChosenToken, TraceView } from "render/trace_view.js";
import { outputTokens, readTrace } from "render/trace_model.js";

/** @param {{ model: import("./trace_model.js").Model }} props */
function TraceFile({ model }) {
	const { trace } = model;
	const { strategy: _, ...asked } = /** @type {Record<string, any>} */ ({ ...trace.options, seed: trace.seed });
	const [index, setIndex] = useState(0);
	const [pick, setPick] = useState(/** @type {any} */ (null));
	const output = trace.outputs[index];
	const tokens = outputTokens(model, index);
	const passes = passesOf(model, index);
	return html`<header><h1>Unspool <span>trace</span></h1><div class="tools"><span class="model">${trace.model}</span><${Theme} /></div></header>
		<main><div class="main"><p class="facts"><strong>${trace.strategy}</strong>${settings(asked).map((each) => ` · ${each}`)}</p>
			${trace.outputs.length > 1 && html`<div class="bar-of-buttons" role="group" aria-label="Outputs">${trace.outputs.map((each, at) =>
				html`<button key=${at} aria-pressed=${at === index} onClick=${() => void (setIndex(at), setPick(null))}>output ${at + 1}</button>`)}</div>`}
			<div class="words"><${TokenText} pieces=${tokens} selected=${pick} onSelect=${setPick} before=${trace.prompt ?? ""} /></div>
			${output && html`<p class="facts">${tokens.length} tokens · log-probability <span data-logprob=${output.logprob}>${number(output.logprob)}</span> ·
				score <span data-score=${output.score}>${number(output.score)}</span> · ended by ${output.finish_reason}</p>`}
			<${ChosenToken} tokens=${tokens} pick=${pick} />
			${passes.some((each) => each.drafted.length) && html`<h3>Drafts</h3><${Drafts} model=${model} output=${index} />`}
			<h3>Search</h3><${TraceView} model=${model} /></div></main>`;
}

const data = document.getElementById("trace")?.textContent ?? "";
render(html`<${TraceFile} model=${readTrace(JSON.parse(data))} />`, document.getElementById("app") ?? document.body);
