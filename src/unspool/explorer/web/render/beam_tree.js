// The beam tree as SVG (x = tokens, y = rank among the beams), and the same nodes as an accessible tree.
// Each column is a picture of its own, so that a step of the player lays out only the columns that it changes.
// Pure functions of a trace's JSON form and a step.

import { Kept, html, useEffect, useRef } from "render/html.js";
import { Token, exp, number, percent, visible } from "render/tokens.js";
import { TreeItems } from "render/tree_items.js";

/**
 * @typedef {import("./trace_model.js").Model} Model
 * @typedef {{ model: Model, columns: import("./trace_model.js").Column[], selected: number | null, onSelect: (id: number) => void }} TreeProps
 */

const GAP = 20, HEIGHT = 38, BOX = 118, TALL = 28, TOP = 26, MIDDLE = GAP + BOX / 2;

/** @param {number} depth */
const left = (depth) => depth * (GAP + BOX);
/** @param {number} row */
const top = (row) => TOP + row * HEIGHT;

/** @param {TreeProps} props */
export function BeamTree({ columns, selected, onSelect }) {
	const box = useRef(/** @type {any} */ (null));
	const rows = new Map();
	for (const { shown } of columns) shown.forEach(({ node }, row) => rows.set(node.id, row));
	const deepest = columns.at(-1)?.depth ?? 0;
	const tallest = Math.max(1, ...columns.map(({ shown, hidden }) => shown.length + (hidden ? 0.6 : 0)));
	useEffect(() => {
		if (box.current) box.current.scrollLeft = box.current.scrollWidth;
	}, [deepest]);
	const draw = ({ depth, shown, hidden }) => html`<div class="level" style=${{ left: `${left(depth)}px`, width: `${left(1) + 8}px` }}><svg>
		<text class="axis" x=${MIDDLE} y="14">${depth || "prompt"}</text>
		${shown.map(({ node, fate }, row) => {
			const y = top(row) + TALL / 2, parent = rows.get(node.parent), from = top(parent) + TALL / 2;
			return html`<g key=${node.id} class=${`node ${fate} ${node.id === selected ? "selected" : ""}`} data-node=${node.id} onClick=${() => onSelect(node.id)}>
				${parent !== undefined && html`<path class="edge" d=${`M0 ${from}C12 ${from} ${GAP - 12} ${y} ${GAP} ${y}`} />`}
				<rect x=${GAP} y=${top(row)} width=${BOX} height=${TALL} rx="6" />
				<text class="word" x=${GAP + 7} y=${y + 4}>${depth ? visible(node.text, 8) : "▸"}</text>
				${depth > 0 && html`<text class="score" x=${GAP + BOX - 8} y=${y + 4}>${number(node.total, 2)}</text>`}
				${node.ends !== null && html`<circle class="end" cx=${GAP + BOX + 3} cy=${y} r="4.5" />`}
			</g>`;
		})}
		${hidden > 0 && html`<text class="axis" x=${MIDDLE} y=${top(shown.length) + 14}>+${hidden}</text>`}</svg></div>`;
	return html`<div class="tree" ref=${box}><div aria-hidden="true" style=${{ width: `${left(deepest + 1) + 14}px`, height: `${top(tallest) + 6}px` }}>${columns.map((column) =>
		html`<${Kept} key=${column.depth} draw=${() => draw(column)} of=${column.shown.map(({ node, fate }) =>
			`${node.id}${fate}${rows.get(node.parent)}${node.id === selected}${node.ends}${node.total}`).join() + column.hidden} />`)}</div></div>`;
}

const FATES = { live: "live", dropped: "given up", committed: "committed", output: "in an output", finished: "finished" };

/** The nodes of the picture for the keyboard and for screen readers. @param {TreeProps} props */
export function TreeList({ model: { nodes }, columns, selected, onSelect }) {
	const fates = new Map();
	for (const { shown } of columns) for (const { node, fate } of shown) fates.set(node.id, fate);
	const content = (id) => {
		const { depth, text, total, logprob, ends } = nodes[id];
		return depth ? html`<${Token} text=${text} limit=${24} /> <span class="num" data-total=${total}>${number(total)}</span>
			<span class="num">${percent(exp(logprob))}</span> <em>${FATES[fates.get(id)]}${ends ? ` · ${ends}` : ""}</em>` : "prompt";
	};
	return html`<${TreeItems} label="Tokens that the strategy tried" root=${0} selected=${selected} onGo=${onSelect} content=${content} data=${nodes}
		childrenOf=${(id) => nodes[id].children.filter((child) => fates.has(child)).sort((a, b) => nodes[b].total - nodes[a].total)}
		classOf=${(id) => fates.get(id)} />`;
}
