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
	/** @type {Map<number, { drafted: { node: any, accepted: boolean }[], own: any }>} */
	const passes = new Map();
	const at = (step) => {
		const known = passes.get(step) ?? { drafted: [], own: null };
		passes.set(step, known);
		return known;
	};
	for (const node of model.nodes) {
		if (node.token === null) continue;
		if (isDraft(node) && known.has(node.parent ?? 0)) {
			known.add(node.id);
			at(node.step).drafted.push({ node, accepted: held.has(node.id) });
		} else if (held.has(node.id) && asked(node) >= 0) at(asked(node)).own = node;
	}
	return [...passes.entries()].sort((a, b) => a[0] - b[0]).map(([, each]) => each);
}

/**
 * Return the numbers of a speculation.
 * @param {ReturnType<typeof passesOf>} passes
 * @param {number} forward passes of the model
 * @param {number} tokens of the output
 */
export function draftFigures(passes, forward, tokens) {
	const drafted = passes.reduce((sum, each) => sum + each.drafted.length, 0);
	const accepted = passes.reduce((sum, each) => sum + each.drafted.filter((draft) => draft.accepted).length, 0);
	return { drafted, accepted, rate: drafted ? accepted / drafted : null, saved: tokens - forward };
}

/** @param {{ model: Model, forward: number }} props */
export function Drafts({ model, forward }) {
	const passes = passesOf(model);
	const tokens = model.trace.outputs[0]?.nodes.length ?? 0;
	const { drafted, accepted, rate, saved } = draftFigures(passes, forward, tokens);
	return html`<div class="drafts"><ul class="figures">
			<li><b data-figure="rate">${percent(rate)}</b> accepted</li><li><b data-figure="accepted">${accepted}</b> of <b data-figure="drafted">${drafted}</b> drafted tokens</li>
			<li><b data-figure="passes">${forward}</b> passes for <b>${tokens}</b> tokens</li><li><b data-figure="saved">${saved}</b> passes saved</li></ul>
		<p class="key note"><span class="draft good">✓ accepted</span><span class="draft bad">✗ rejected</span><span class="draft">→ the model's own</span></p>
		<ol class="passes">${passes.map(({ drafted: own, own: last }, index) => html`<li key=${index}>
			${own.map(({ node, accepted: good }) => html`<span key=${node.id} class=${`draft ${good ? "good" : "bad"}`} title=${good ? "drafted and accepted" : "drafted and rejected"}>
				<span aria-hidden="true">${good ? "✓" : "✗"}</span><span class="hidden">${good ? "accepted " : "rejected "}</span> <${Token} text=${node.text} /></span>`)}
			${last && html`<span class="draft" title="the model's own token">→ <${Token} text=${last.text} /></span>`}</li>`)}</ol></div>`;
}
