// Speculative decoding: per pass of the model, the drafted tokens, accepted or rejected. A pure function of a trace.

import { html } from "render/html.js";
import { Token, percent } from "render/tokens.js";

/** @typedef {import("./trace_model.js").Model} Model */

/**
 * Return the passes of an output: the drafted tokens that each one verified, and the model's own token.
 * @param {Model} model
 * @param {number} [output]
 */
export function passesOf(model, output = 0) {
	const held = new Set(model.trace.outputs[output]?.nodes);
	/** @returns {number} the step in which the model was asked about a token; -1 if it was not */
	const asked = (node) => model.rows.get(node.parent)?.[0].step ?? -1;
	const isDraft = (node) => !node.draft && node.step <= asked(node);
	const known = new Set([0, ...held]);
	/** @type {{ drafted: { node: any, accepted: boolean }[], own: any }[]} by step */
	const passes = [];
	const at = (step) => (passes[step] ??= { drafted: [], own: null });
	for (const node of model.nodes) {
		if (node.token === null) continue;
		if (isDraft(node) && known.has(node.parent ?? 0)) {
			known.add(node.id);
			at(node.step).drafted.push({ node, accepted: held.has(node.id) });
		} else if (held.has(node.id) && asked(node) >= 0) at(asked(node)).own = node;
	}
	return passes.filter(Boolean);
}

/** @param {{ model: Model, output?: number, forward?: number }} props forward: passes of the model, if the caller knows them from the engine */
export function Drafts({ model, output = 0, forward }) {
	const passes = passesOf(model, output);
	forward ??= passes.length;
	const tokens = model.trace.outputs[output]?.nodes.length ?? 0;
	const drafts = passes.flatMap((each) => each.drafted);
	const accepted = drafts.filter((each) => each.accepted).length;
	return html`<div class="drafts"><ul class="figures">
			<li><b data-figure="rate">${percent(drafts.length ? accepted / drafts.length : null)}</b> accepted</li><li><b data-figure="accepted">${accepted}</b> of <b data-figure="drafted">${drafts.length}</b> drafted tokens</li>
			<li><b data-figure="passes">${forward}</b> passes for <b>${tokens}</b> tokens</li><li><b data-figure="saved">${tokens - forward}</b> passes saved</li></ul>
		<p class="key note"><span class="draft good">✓ accepted</span><span class="draft bad">✗ rejected</span><span class="draft">→ the model's own</span></p>
		<ol class="passes">${passes.map(({ drafted, own }, index) => html`<li key=${index}>
			${drafted.map(({ node, accepted }) => {
				const [kind, sign, word] = accepted ? ["good", "✓", "accepted"] : ["bad", "✗", "rejected"];
				return html`<span key=${node.id} class=${`draft ${kind}`} title=${`drafted and ${word}`}>
					<span aria-hidden="true">${sign}</span><span class="hidden">${word} </span> <${Token} text=${node.text} /></span>`;
			})}
			${own && html`<span class="draft" title="the model's own token">→ <${Token} text=${own.text} /></span>`}</li>`)}</ol></div>`;
}
