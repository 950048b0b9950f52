// The state of the page, and its form in the URL: a link restores the view, the prompt, the options and the seed.

/** @typedef {import("../types").State} State */

/** @type {State} */
export const FIRST = {
	view: "next",
	model: null,
	prompt: "Once upon a time",
	path: [],
	run: false,
	next: { temperature: 0.8, top_p: 0.9 },
	tree: [],
	at: -1,
	strategy: "sample",
	options: {},
	seed: 7,
	step: null,
	entries: [],
	tokens: 40,
	pick: null,
};

/** Fields that belong in the link of each view. */
const OF_RUN = ["prompt", "path", "strategy", "options", "seed", "run"];
const FIELDS = {
	next: ["prompt", "next", "tree", "at"],
	generate: [...OF_RUN, "pick"],
	beams: [...OF_RUN, "step"],
	compare: ["prompt", "entries", "tokens", "seed", "run"],
	speculation: OF_RUN,
	structure: [...OF_RUN, "pick"],
};

/** First strategy and options of the views that share the form of a generation. */
const STARTS = {
	generate: { strategy: "sample", options: { temperature: 0.8, top_p: 0.95, max_new_tokens: 60 } },
	beams: { strategy: "beam", options: { num_beams: 4, max_new_tokens: 24 } },
	speculation: { strategy: "assisted", options: { max_new_tokens: 60 } },
	structure: { strategy: "sample", options: { regex: "[A-Z][a-z]+ had [0-9]{1,2} (cats|dogs|foxes)\\.", max_new_tokens: 40 } },
};

/**
 * Return the first state of a view, with the prompt that another view had.
 * @param {string} view
 * @param {{ prompt?: string, assistants?: string[] }} [from]
 * @returns {State}
 */
export function start(view, from = {}) {
	const first = { ...FIRST, ...STARTS[view], view, prompt: from.prompt ?? FIRST.prompt };
	if (view !== "speculation") return first;
	const draft = from.assistants?.[0];
	return { ...first, options: { ...first.options, ...(draft ? { assistant_model: draft } : { prompt_lookup_num_tokens: 3 }) } };
}

/**
 * Return the part of the URL behind "#".
 * @param {State} state
 */
export function toHash(state) {
	const fields = ["model", ...FIELDS[state.view]];
	const kept = Object.fromEntries(fields.map((name) => [name, state[name]]));
	return `#${state.view}=${encodeURIComponent(JSON.stringify(kept))}`;
}

const kind = (value) => (Array.isArray(value) ? "array" : value === null ? "null" : typeof value);

/**
 * Return the state of a link; null if it is not one. Values of the wrong type are left out.
 * @param {string} hash
 * @param {{ assistants?: string[] }} [from]
 * @returns {State | null}
 */
export function fromHash(hash, from = {}) {
	const [, view, text] = /^#(\w+)(?:=(.*))?$/.exec(hash) ?? [];
	if (!view || !(view in FIELDS)) return null;
	const first = start(view, from);
	if (!text) return first;
	try {
		const given = JSON.parse(decodeURIComponent(text));
		for (const name of ["model", ...FIELDS[view]]) {
			const value = given[name];
			const kinds = { model: "string", step: "number", pick: "number" }[name] ?? kind(first[name]);
			if (kinds === kind(value)) first[name] = value;
		}
		return first;
	} catch {
		return null;
	}
}

/**
 * Return the tokens from the prompt to a node of the walk.
 * @param {[number, number, string][]} tree per node: the index of its parent, its token, its text
 * @param {number} at an index; -1 for the prompt
 * @returns {[number, string][]}
 */
export function walkTo(tree, at) {
	/** @type {[number, string][]} */
	const path = [];
	for (let index = at; index >= 0 && tree[index]; index = tree[index][0]) path.unshift([tree[index][1], tree[index][2]]);
	return path;
}
