// The beam tree as SVG (x = tokens, y = rank among the beams), and the same nodes as an accessible tree.
// Each column is a separate picture, in groups, so that a step of the player lays out only the columns that it changes.
// Pure functions of a trace's JSON form and a step.

import { Groups, html, useLayoutEffect, useRef } from "render/html.js";
import { Token, exp, number, percent, visible } from "render/tokens.js";
import { TreeItems } from "render/tree_items.js";

/**
 * @typedef {import("./trace_model.js").Model} Model
 * @typedef {{ model: Model, columns: import("./trace_model.js").Column[], shownAt: import("./trace_model.js").Shown[], selected: number | null, onSelect: (id: number) => void }} TreeProps
 */

const COLUMNS = 4, GAP = 20, HEIGHT = 38, BOX = 118, TALL = 28, TOP = 26, MIDDLE = GAP + BOX / 2;

/** @param {number} depth */
const left = (depth) => depth * (GAP + BOX);
const wide = (depth, count) => ({ left: `${left(depth)}px`, width: `${left(count) + 8}px` });
/** @param {number} row */
const top = (row) => TOP + row * HEIGHT;

/** @param {TreeProps} props */
export function BeamTree({ columns, shownAt, selected, onSelect }) {
	const box = useRef(/** @type {any} */ (null));
	const parentRow = (node) => shownAt[node.parent ?? -1]?.row;
	const deepest = columns.at(-1)?.depth ?? 0;
	const tallest = Math.max(1, ...columns.map(({ shown, hidden }) => shown.length + (hidden ? 0.6 : 0)));
	useLayoutEffect(() => {
		if (box.current) box.current.scrollLeft = box.current.scrollWidth;
	}, [deepest]);
	const draw = ({ depth, shown, hidden }) => html`<div class="level" style=${wide(depth % COLUMNS, 1)}><svg>
		<text class="axis" x=${MIDDLE} y="14">${depth || "prompt"}</text>
		${shown.map(({ node, fate, row }) => {
			const y = top(row) + TALL / 2, parent = parentRow(node), from = top(parent) + TALL / 2;
			return html`<g key=${node.id} class=${`node ${fate} ${node.id === selected ? "selected" : ""}`} data-node=${node.id} onClick=${() => onSelect(node.id)}>
				${parent !== undefined && html`<path class="edge" d=${`M0 ${from}C12 ${from} ${GAP - 12} ${y} ${GAP} ${y}`} />`}
				<rect x=${GAP} y=${top(row)} width=${BOX} height=${TALL} rx="6" />
				<text class="word" x=${GAP + 7} y=${y + 4}>${depth ? visible(node.text, 8) : "▸"}</text>
				${depth > 0 && html`<text class="score" x=${GAP + BOX - 8} y=${y + 4}>${number(node.total, 2)}</text>`}
				${node.ends !== null && html`<circle class="end" cx=${GAP + BOX + 3} cy=${y} r="4.5" />`}
			</g>`;
		})}
		${hidden > 0 && html`<text class="axis" x=${MIDDLE} y=${top(shown.length) + 14}>+${hidden}</text>`}</svg></div>`;
	const parts = columns.map((column) => ({ key: column.depth, group: Math.floor(column.depth / COLUMNS), draw: () => draw(column),
		of: column.shown.map(({ node, fate }) => `${node.look} ${fate} ${parentRow(node)} ${node.id === selected}`).join() + column.hidden }));
	return html`<div class="tree" tabindex="0" ref=${box}><div aria-hidden="true" style=${{ width: `${left(deepest + 1) + 14}px`, height: `${top(tallest) + 6}px` }}><${Groups}
		parts=${parts} style=${(group) => wide(group * COLUMNS, COLUMNS)} /></div></div>`;
}

const FATES = { dropped: "given up", output: "in an output" };

/** The nodes of the picture for the keyboard and for screen readers. @param {TreeProps} props */
export function TreeList({ model: { nodes }, shownAt, selected, onSelect }) {
	const content = (id) => {
		const { depth, text, total, logprob, ends } = nodes[id];
		return depth ? html`<${Token} text=${text} limit=${24} /> <span class="num" data-total=${total}>${number(total)}</span>
			<span class="num">${percent(exp(logprob))}</span> <em>${FATES[shownAt[id].fate] ?? shownAt[id].fate}${ends ? ` · ${ends}` : ""}</em>` : "prompt";
	};
	return html`<${TreeItems} label="Tokens that the strategy tried" root=${0} selected=${selected} onGo=${onSelect} content=${content}
		childrenOf=${(id) => nodes[id].children.filter((child) => shownAt[child])} look=${(id) => nodes[id].look + shownAt[id].fate}
		classOf=${(id) => shownAt[id].fate} />`;
}
