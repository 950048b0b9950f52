// The beam tree as SVG (x = tokens, y = rank among the beams), and the same nodes as an accessible tree.
// A pure function of a trace's JSON form and a step.

import { Component, html, useEffect, useRef } from "render/html.js";
import { Token, exp, number, percent, visible } from "render/tokens.js";
import { TreeItems } from "render/tree_items.js";
import { treeAt } from "render/trace_model.js";

/**
 * @typedef {import("./trace_model.js").Model} Model
 * @typedef {import("./trace_model.js").Shown} Shown
 */

const WIDTH = 122, HEIGHT = 38, BOX = 102, TALL = 28, TOP = 26;

/** @param {number} depth */
const left = (depth) => 8 + depth * WIDTH;
/** @param {number} row */
const top = (row) => TOP + row * HEIGHT;

/** One column of nodes. It is drawn again only if its signature changes, so that scrubbing stays fast. */
class Column extends Component {
	/** @param {any} next */
	shouldComponentUpdate(next) {
		return next.signature !== this.props.signature;
	}

	render() {
		const { column, rows, selected, onSelect } = (this.props);
		const x = left(column.depth);
		return html`<g>
			<text class="axis" x=${x + BOX / 2} y="14">${column.depth ? column.depth : "prompt"}</text>
			${column.shown.map(({ node, fate }, row) => {
				const parent = rows.get(node.parent);
				const y = top(row) + TALL / 2;
				const from = parent === undefined ? 0 : top(parent) + TALL / 2;
				const start = left(column.depth - 1) + BOX;
				return html`<g key=${node.id} class=${`node ${fate} ${node.id === selected ? "selected" : ""}`}
						data-node=${node.id} onClick=${() => onSelect(node.id)}>
					${parent !== undefined && html`<path class="edge" d=${`M${start} ${from}C${start + 12} ${from} ${x - 12} ${y} ${x} ${y}`} />`}
					<rect x=${x} y=${top(row)} width=${BOX} height=${TALL} rx="6" />
					<text class="word" x=${x + 7} y=${y + 4}>${node.depth ? visible(node.text, 8) : "▸"}</text>
					${node.depth > 0 && html`<text class="score" x=${x + BOX - 8} y=${y + 4}>${number(node.total, 2)}</text>`}
					${node.ends !== null && html`<circle class="end" cx=${x + BOX + 3} cy=${y} r="4.5" />`}
				</g>`;
			})}
			${column.hidden > 0 && html`<text class="axis" x=${x + BOX / 2} y=${top(column.shown.length) + 14}>+${column.hidden}</text>`}
		</g>`;
	}
}

/**
 * @param {{ model: Model, step: number, selected: number | null, onSelect: (id: number) => void }} props
 */
export function BeamTree({ model, step, selected, onSelect }) {
	const box = useRef(/** @type {any} */ (null));
	const { columns } = treeAt(model, step);
	const rows = new Map();
	columns.forEach((column) => column.shown.forEach(({ node }, row) => rows.set(node.id, row)));
	const deepest = columns.length ? columns[columns.length - 1].depth : 0;
	const tallest = Math.max(1, ...columns.map((column) => column.shown.length + (column.hidden ? 0.6 : 0)));
	useEffect(() => {
		if (box.current) box.current.scrollLeft = left(deepest + 1) - box.current.clientWidth + 8;
	}, [deepest]);
	const width = left(deepest + 1) + 6;
	const height = top(tallest) + 6;
	return html`<div class="tree" ref=${box}>
		<svg aria-hidden="true" width=${width} height=${height} viewBox=${`0 0 ${width} ${height}`}>${columns.map((column) => {
			const parts = column.shown.map(({ node, fate }, row) => `${node.id}${fate}${rows.get(node.parent)}.${row}${node.id === selected ? "*" : ""}${node.ends ?? ""}${node.total}`);
			return html`<${Column} key=${column.depth} column=${column} rows=${rows} selected=${selected} onSelect=${onSelect}
				signature=${`${parts.join()}+${column.hidden}`} />`;
		})}</svg>
	</div>`;
}

const FATES = { live: "live", dropped: "given up", committed: "committed", output: "in an output", finished: "finished" };

/**
 * The nodes of the picture for the keyboard and for screen readers.
 * @param {{ model: Model, step: number, selected: number | null, onSelect: (id: number) => void }} props
 */
export function TreeList({ model, step, selected, onSelect }) {
	const fates = new Map();
	for (const { shown } of treeAt(model, step).columns) for (const { node, fate } of shown) fates.set(node.id, fate);
	const childrenOf = (id) => model.nodes[id].children.filter((child) => fates.has(child)).sort((a, b) => model.nodes[b].total - model.nodes[a].total);
	const content = (id) => {
		const node = model.nodes[id];
		if (!node.depth) return "prompt";
		return html`<${Token} text=${node.text} limit=${24} /> <span class="num" data-total=${node.total}>${number(node.total)}</span>
			<span class="num">${percent(exp(node.logprob))}</span> <em>${FATES[fates.get(id)]}${node.ends ? ` · ${node.ends}` : ""}</em>`;
	};
	return html`<${TreeItems} label="Tokens that the strategy tried" root=${0} childrenOf=${childrenOf} selected=${selected} onGo=${onSelect}
		classOf=${(id) => fates.get(id)} content=${content} />`;
}
