// A form made from the option table: names, help texts, ranges and defaults come from the server.

import { Problem, html, useState, withValue } from "render/html.js";

/** @typedef {{ name: string, group: string, help: string, range: string, choices: string[], long: boolean, type: string, placeholder: string,
 *   read_by: "all" | string[], partners: string[], multiple: boolean, separator: string }} Option */

/** @param {Option} row */
const isNumber = ({ type }) => type === "int" || type === "float";

/** @param {any} value @param {Option} row @returns {string} */
function shown(value, row) {
	if (row.multiple && Array.isArray(value) && value.every((each) => typeof each !== "object")) return value.join(row.separator || ", ");
	return value && typeof value === "object" ? JSON.stringify(value) : String(value ?? "");
}

/** @param {string} text @param {Option} row @returns {any} the value; undefined for an empty field */
export function parsed(text, row) {
	if (text === "") return undefined;
	if (row.multiple && row.type === "int") return text.split(/[\s,]+/).filter(Boolean).map(Number);
	if (row.multiple) return row.separator ? text.split(row.separator).map((each) => each.trim()).filter(Boolean) : [text];
	if (isNumber(row)) return Number.isNaN(Number(text)) ? text : Number(text);
	if (row.type === "bool") return text === "true";
	if (row.type === "json") {
		try {
			return JSON.parse(text);
		} catch {
			return text;
		}
	}
	return text;
}

/** @param {{ row: Option, value: any, onChange: (value: any) => void, error: string | null | false | undefined, prefix: string }} props */
function Field({ row, value, onChange, error, prefix }) {
	const [text, setText] = useState(/** @type {any} */ (null));
	const id = `${prefix}option-${row.name}`;
	const now = text ?? shown(value, row);
	const change = ({ target }) => {
		setText(target.value);
		onChange(parsed(target.value, row));
	};
	const common = { id, name: row.name, value: now, onInput: change, onBlur: () => setText(null), "aria-describedby": `${id}-help`,
		"aria-invalid": error ? "true" : undefined, placeholder: row.placeholder };
	const { choices, long } = row;
	const field = choices.length
		? html`<select ...${common}><option value="">default: ${row.placeholder}</option>
				${choices.map((each) => html`<option key=${each} value=${each}>${each}</option>`)}</select>`
		: long ? html`<textarea ...${common} rows="3" spellcheck=${false}></textarea>`
		: html`<input ...${common} type=${isNumber(row) && !row.multiple ? "number" : "text"} step=${row.type === "int" ? 1 : "any"}
				autocomplete="off" spellcheck=${false} />`;
	return html`<div class=${`field ${value === undefined ? "" : "set"}`}><label for=${id}>${row.name}</label>${field}
		<small id=${`${id}-help`}>${row.help} <span class="range">${row.range}</span>
			${row.partners.length > 0 && html` <span class="range">with ${row.partners.join(" or ")}</span>`}</small>
		<${Problem} message=${error} /></div>`;
}

/**
 * @param {{ facts: any, strategy: string, strategies?: string[], values: Record<string, any>, first?: string[], prefix?: string,
 *   error: { param: string | null, message: string } | null, onChange: (values: Record<string, any>) => void,
 *   onStrategy?: (strategy: string) => void }} props
 */
export function OptionsForm({ facts, strategy, strategies, values, first = [], prefix = "", error, onChange, onStrategy }) {
	const names = strategies ?? facts.strategies.map((each) => each.name);
	const chosen = facts.strategies.find((each) => each.name === strategy);
	const [[, near], ...more] = chosen.form;
	const shownFirst = [...first, ...near.filter((name) => !first.includes(name))];
	const set = (name, value) => onChange(withValue(values, name, value));
	const field = (name) => html`<${Field} key=${name} row=${facts.options.find((each) => each.name === name)} prefix=${prefix} value=${values[name]}
		error=${error?.param === name && error?.message} onChange=${(value) => set(name, value)} />`;
	const choice = (name, value, choices, onPick, note) => html`<div class="field"><label for=${prefix + name}>${name}</label>
		<select id=${prefix + name} value=${value} onChange=${({ target }) => onPick(target.value)}>
			${choices.map((each) => html`<option key=${each} value=${each}>${each || "none"}</option>`)}</select>
		<small>${note}</small></div>`;
	return html`<details open=${matchMedia("(min-width: 861px)").matches}><summary>Options</summary><div class="options">
		${onStrategy && choice("strategy", strategy, names, onStrategy, chosen.needs)}
		${chosen.reads_assistant && choice("assistant_model", values.assistant_model ?? "", ["", ...facts.assistants],
			(name) => set("assistant_model", name || undefined), "Draft model, of the server's --assistant-model.")}
		${shownFirst.map(field)}
		<details><summary>All options of ${strategy}</summary>${more.map(([group, rest]) =>
			html`<fieldset key=${group}><legend>${group}</legend>${rest.filter((name) => !first.includes(name)).map(field)}</fieldset>`)}</details></div></details>`;
}

/**
 * Return the options that another strategy reads too, with the presets of that strategy.
 * @param {any} facts
 * @param {string} strategy
 * @param {Record<string, any>} values
 */
export function optionsFor(facts, strategy, values) {
	const { presets, reads_assistant: assisted, form } = facts.strategies.find((each) => each.name === strategy);
	const read = form.flatMap(([, names]) => names);
	const kept = Object.entries(values).filter(([name]) => (name === "assistant_model" ? assisted : read.includes(name)));
	return { ...presets, ...Object.fromEntries(kept) };
}
