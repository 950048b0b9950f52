// From the JSON form of a trace (docs/trace.md) to the tree at any step. Pure functions.

import { exp } from "render/tokens.js";

/**
 * @typedef {{ id: number, parent: number | null, token: number | null, text: string, logprob: number | null,
 *   score: number | null, ends: string | null, state: string, step: number, branch: number, draft: boolean,
 *   committed: number | null, dropped_at: number | null, why: string | null, outputs: number[] }} TraceNode
 * @typedef {{ token: number, text: string, logprob: number | null, probability: number,
 *   processed_probability: number, cut_by: string | null }} Best
 * @typedef {{ token: number, text: string, probability: number, processed_probability: number, node: number | null,
 *   perturbed: number | null }} Candidate
 * @typedef {{ kind: string, branch: number, back: number, draft: boolean, node: number | null, length: number,
 *   candidates: Candidate[], entropy: number | null, num_allowed: number | null,
 *   cuts: { processor: string, count: number }[], best: Best[] }} Row
 * @typedef {{ index: number, note: string | null, rows: Row[] }} Step
 * @typedef {{ nodes: number[], logprob: number | null, score: number | null, finish_reason: string,
 *   unmet: string | null }} Output
 * @typedef {{ version: number, model: string, strategy: string, seed: number, options: Record<string, any>,
 *   prompt: string | null, prompt_token_ids: number[], processors: string[], nodes: TraceNode[], steps: Step[],
 *   outputs: Output[] }} Trace
 * @typedef {TraceNode & { depth: number, total: number, children: number[], look: string }} TreeNode
 * @typedef {{ trace: Trace, nodes: TreeNode[], rows: Map<number | null, { step: number, row: Row }[]>, sums: "score" | "logprob",
 *   last: number }} Model
 */

/**
 * Return the tree of a trace. `depth` is the number of tokens from the prompt. `total` is the sum of their scores, or of
 * their log-probabilities if the scores are logits. Children are sorted by it. `look` is a text with all that a picture
 * shows of the node at any step.
 * @param {Trace} trace
 * @returns {Model}
 */
export function readTrace(trace) {
	/** @type {TreeNode[]} */
	const nodes = [];
	const sums = trace.nodes.every((node) => (node.score ?? 0) <= 0) ? "score" : "logprob";
	for (const node of trace.nodes) {
		const parent = node.parent === null ? null : nodes[node.parent];
		const own = { ...node, depth: 0, total: 0, children: [], look: "" };
		if (parent) {
			own.depth = parent.depth + 1;
			own.total = parent.total + (node[sums] ?? 0);
			parent.children.push(node.id);
		}
		own.look = [node.id, node.token, own.total, node.logprob, node.ends].join();
		nodes.push(own);
	}
	for (const { children } of nodes) children.sort((a, b) => nodes[b].total - nodes[a].total);
	/** @type {Map<number | null, { step: number, row: Row }[]>} */
	const rows = new Map();
	for (const { index: step, rows: asked } of trace.steps)
		for (const row of asked) rows.set(row.node, [...(rows.get(row.node) ?? []), { step, row }]);
	return { trace, nodes, rows, sums, last: trace.steps.length };
}

/**
 * Add a part of a trace that still grows.
 * @param {Trace | null} trace
 * @param {Trace} part with the new and changed nodes, and the new steps
 * @returns {Trace}
 */
export function mergeTrace(trace, part) {
	if (trace === null) return part;
	const nodes = [...trace.nodes];
	for (const node of part.nodes) nodes[node.id] = node;
	const steps = [...trace.steps];
	for (const step of part.steps) steps[step.index] = step;
	return { ...part, nodes, steps };
}

/** @typedef {{ node: TreeNode, fate: "live" | "dropped" | "committed" | "output" | "finished", row: number }} Shown */

/** @typedef {{ depth: number, shown: Shown[], hidden: number }} Column */

/**
 * Return the nodes of the model's tree after a step, by depth and by id; `row` is the place in its column. Nodes that
 * were dropped two steps ago are only counted.
 * @param {Model} model
 * @param {number} step
 * @returns {{ columns: Column[], shownAt: Shown[] }}
 */
export function treeAt(model, step) {
	/** @type {Column[]} */
	const columns = [];
	/** @type {Shown[]} */
	const shownAt = [];
	for (const node of model.nodes) {
		if (node.step > step || node.draft) continue;
		const column = (columns[node.depth] ??= { depth: node.depth, shown: [], hidden: 0 });
		const dropped = node.dropped_at ?? Infinity;
		const fate = dropped <= step ? "dropped" : (node.committed ?? Infinity) <= step ? "committed" : step >= model.last && node.outputs.length ? "output"
			: node.ends !== null ? "finished" : "live";
		if (dropped <= step - 2 && node.ends === null) column.hidden += 1;
		else column.shown.push((shownAt[node.id] = { node, fate, row: 0 }));
	}
	const rank = ({ fate }) => Number(fate === "dropped");
	columns.forEach(({ shown }) => shown.sort((a, b) => rank(a) - rank(b) || b.node.total - a.node.total || a.node.id - b.node.id)
		.forEach((each, row) => (each.row = row)));
	return { columns: columns.filter(Boolean), shownAt };
}

/**
 * Return the finished hypotheses after a step, best first, with scores normalized by length.
 * @param {Model} model
 * @param {number} step
 * @returns {{ end: TreeNode, score: number | null, output: number | null }[]}
 */
export function hypothesesAt(model, step) {
	const penalty = model.trace.options.length_penalty ?? 1;
	/** @type {{ end: TreeNode, score: number | null, output: number | null }[]} */
	const returned = (step < model.last ? [] : model.trace.outputs).map(({ nodes, score }, output) => ({ end: model.nodes[nodes.at(-1) ?? 0], score, output }));
	const others = model.nodes.filter((node) => node.ends !== null && !node.draft && node.step <= step && !returned.some(({ end }) => end === node));
	return [...returned, ...others.map((end) => ({ end, score: end.depth ? end.total / end.depth ** penalty : null, output: null }))]
		.sort((a, b) => (b.score ?? -Infinity) - (a.score ?? -Infinity));
}

/**
 * Return the tokens from the prompt to a node, first to last.
 * @param {Model} model
 * @param {number} id
 * @returns {TreeNode[]}
 */
export function pathTo(model, id) {
	const path = [];
	for (let node = model.nodes[id]; node && node.token !== null; node = model.nodes[node.parent ?? 0]) path.unshift(node);
	return path;
}

/**
 * Return the row that a node was chosen from; null if the model was not asked there.
 * @param {Model} model
 * @param {TreeNode} node
 * @returns {Row | null}
 */
export function rowOf(model, node) {
	const rows = model.rows.get(node.parent) ?? [];
	const own = rows.filter(({ row }) => row.draft === node.draft);
	return (own.find(({ row }) => row.candidates.some((each) => each.node === node.id)) ?? own.at(-1))?.row ?? null;
}

/**
 * Return the tokens of an output with their probabilities and alternatives.
 * @param {Model} model
 * @param {number} index
 */
export function outputTokens(model, index) {
	return (model.trace.outputs[index]?.nodes ?? []).map((id) => {
		const node = model.nodes[id];
		const row = rowOf(model, node);
		const chosen = row?.candidates.find((each) => each.token === node.token) ?? row?.best.find((each) => each.token === node.token);
		return { node, row, text: node.text, probability: exp(node.logprob), processed: chosen?.processed_probability ?? null };
	});
}
