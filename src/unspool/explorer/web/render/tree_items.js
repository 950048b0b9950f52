// An accessible tree (role=tree) with arrow keys: left for the parent, right for the child, up and down for siblings.

import { Groups, html } from "render/html.js";

/** @typedef {{ id: number, parent: Item | null, indent: number, size: number, place: number, level: number }} Item */

/** @returns {Item[]} the items in the order of the tree */
function itemsOf(root, childrenOf) {
	/** @type {Item[]} */
	const items = [];
	/** @type {Item[]} */
	const stack = [{ id: root, parent: null, indent: 0, size: 1, place: 1, level: 1 }];
	for (let item = stack.pop(); item; item = stack.pop()) {
		const parent = item;
		items.push(parent);
		const children = childrenOf(parent.id);
		const indent = parent.indent + (children.length > 1 ? 1 : 0);
		for (let index = children.length - 1; index >= 0; index -= 1)
			stack.push({ id: children[index], parent, indent, size: children.length, place: index + 1, level: parent.level + 1 });
	}
	return items;
}

/** Levels of a group, and its most items. A group begins at a level, so that a new item moves few others to another group. */
const LEVELS = 32, MOST = 64;

/**
 * `look` is a text with all that the class and the content of an item show.
 * @param {{ label: string, root: number, childrenOf: (id: number) => number[], selected: number | null, onGo: (id: number) => void,
 *   look: (id: number) => string, kind?: string, classOf?: (id: number) => string, content: (id: number) => any }} props
 */
export function TreeItems({ label, root, childrenOf, selected, onGo, look, kind = "", classOf = () => "", content }) {
	const items = itemsOf(root, childrenOf);
	const at = Math.max(0, items.findIndex((item) => item.id === selected));
	const move = (event) => {
		const { id, parent, place } = items[at];
		const siblings = parent ? childrenOf(parent.id) : [];
		const to = { ArrowLeft: parent?.id, ArrowRight: childrenOf(id)[0], ArrowUp: siblings[place - 2], ArrowDown: siblings[place],
			Home: root, End: items.at(-1)?.id }[event.key];
		if (to === undefined) return;
		event.preventDefault();
		const list = event.currentTarget;
		onGo(to);
		requestAnimationFrame(() => list.querySelector(`[data-item="${to}"]`)?.focus());
	};
	let start = 0;
	const parts = items.map(({ id, level, size, place, indent }, index) => {
		const tab = index === at ? 0 : -1;
		if (level % LEVELS === 1 || level < items[start].level || index - start === MOST) start = index;
		return { key: id, group: items[start].id, of: `${look(id)} ${level} ${size} ${place} ${indent} ${tab} ${id === selected}`, draw: () =>
			html`<div role="treeitem" data-item=${id} class=${classOf(id)} aria-level=${level} aria-setsize=${size} aria-posinset=${place}
				aria-selected=${id === selected} tabindex=${tab} style=${{ "--indent": indent }} onClick=${() => onGo(id)}>${content(id)}</div>` };
	});
	return html`<div class=${`treelist ${kind}`} role="tree" aria-label=${label} onKeyDown=${move}><${Groups} parts=${parts}
		style=${(_, size) => ({ "--items": size })} /></div>`;
}
