// Structured output: how many tokens the grammar allows at each step. A pure function of a trace.

import { html, roving } from "render/html.js";
import { Token, percent } from "render/tokens.js";
import { outputTokens } from "render/trace_model.js";

/**
 * Return the tokens of an output, each with the number of tokens that its grammar allowed; null if it was not asked.
 * @param {import("./trace_model.js").Model} model
 * @param {number} vocabSize
 */
export function allowedCounts(model, vocabSize) {
	return outputTokens(model, 0).map((token) => ({ ...token,
		allowed: (token.row?.num_allowed ?? null) !== null ? vocabSize - (token.row?.cuts.find((cut) => cut.processor === "grammar")?.count ?? 0) : null }));
}

/** @param {{ tokens: ReturnType<typeof allowedCounts>, vocabSize: number, selected: number | null, onSelect: (index: number) => void }} props */
export function AllowedStrip({ tokens, vocabSize, selected, onSelect }) {
	return html`<div class="strip" role="group" aria-label="Tokens of the output" onKeyDown=${(event) => roving(event, onSelect)}>${tokens.map(({ text, allowed }, index) =>
		html`<button key=${index} class=${allowed === 1 ? "forced" : ""} aria-pressed=${index === selected} tabindex=${index === (selected ?? 0) ? 0 : -1}
			data-allowed=${allowed} onClick=${() => onSelect(index)}>
			<${Token} text=${text} limit=${16} /><small>${allowed === 1 ? "forced" : allowed === vocabSize ? "all" : (allowed ?? "–")}</small></button>`)}</div>`;
}

/** @param {{ answer: { num_allowed: number, vocab_size: number, allowed_probability: number, allowed: { token_id: number, text: string, probability: number }[], tokens: any[] }, chosen: number | null }} props */
export function AllowedTokens({ answer, chosen }) {
	const forbidden = answer.tokens.filter((each) => each.cut_by === "grammar").sort((a, b) => b.probability - a.probability).slice(0, 12);
	const chip = (each, kind) => html`<li key=${each.token_id} class=${`draft ${each.token_id === chosen ? "good" : ""} ${kind}`} data-token=${each.token_id}>
		<${Token} text=${each.text} limit=${24} /> <span class="num">${percent(each.probability)}</span></li>`;
	return html`<h3>Allowed: <span data-num-allowed=${answer.num_allowed}>${answer.num_allowed}</span> of ${answer.vocab_size} tokens,
			${" "}${percent(answer.allowed_probability)} of the model's probability</h3>
		<ul class="chips">${answer.allowed.map((each) => chip(each, ""))}</ul>
		${answer.num_allowed > answer.allowed.length && html`<p class="note">and ${answer.num_allowed - answer.allowed.length} more</p>`}
		${forbidden.length > 0 && html`<h3>The model's best tokens that the grammar forbids</h3><ul class="chips">${forbidden.map((each) => chip(each, "bad"))}</ul>`}`;
}
