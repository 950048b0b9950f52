// The next token's distribution before and after the processors, with a line where each processor cuts.
// A pure function of the JSON form of NextTokens.

import { html, roving, useState } from "render/html.js";
import { Token, percent } from "render/tokens.js";

/**
 * @typedef {{ rank: number, token_id: number, text: string, probability: number, processed_probability: number,
 *   kept: boolean, cut_by: string | null }} Entry
 * @typedef {{ processor: string, count: number, probability: number }} Cut
 * @typedef {{ tokens: Entry[], processors: string[], num_kept: number, vocab_size: number, cuts?: Cut[],
 *   hidden_probability: number }} Distribution
 */

/**
 * Return the shown tokens in sections: the kept ones, then those of each processor, last processor first.
 * @param {Distribution} data
 * @returns {{ processor: string | null, cut: Cut | null, tokens: Entry[] }[]}
 */
export function sections(data) {
	const kept = data.tokens.filter((each) => each.cut_by === null);
	/** @type {{ processor: string | null, cut: Cut | null, tokens: Entry[] }[]} */
	const found = [{ processor: null, cut: null, tokens: kept }];
	for (const processor of [...data.processors].reverse()) {
		const tokens = data.tokens.filter((each) => each.cut_by === processor);
		tokens.sort((a, b) => b.probability - a.probability || a.token_id - b.token_id);
		const cut = data.cuts?.find((each) => each.processor === processor) ?? null;
		if (tokens.length || cut) found.push({ processor, cut, tokens });
	}
	return found;
}

/** @param {{ cut: Cut | null, processor: string, shown: number }} props */
function CutLine({ cut, processor, shown }) {
	const all = cut
		? `${cut.count} ${cut.count === 1 ? "token" : "tokens"}, ${percent(cut.probability)} of the model's probability`
		: `${shown} of the shown tokens`;
	return html`<li class="cutline" data-processor=${processor} data-count=${cut?.count ?? shown}>
		<strong>${processor}</strong> cuts here: ${all}</li>`;
}

/**
 * @param {{ data: Distribution, onPick?: (entry: Entry) => void, label?: string }} props
 */
export function DistributionChart({ data, onPick, label = "Next tokens" }) {
	const [active, setActive] = useState(0);
	const greatest = Math.max(1e-9, ...data.tokens.map((each) => Math.max(each.probability, each.processed_probability)));
	let place = -1;
	return html`<div class="chart">
		<div class="charthead" aria-hidden="true"><span>rank</span><span>token</span>
			<span class="legend"><i class="after"></i>drawn <i class="before"></i>model</span>
			<span>model</span><span>drawn</span></div>
		<ol class="bars" aria-label=${label} onKeyDown=${(event) => roving(event, setActive)}>${sections(data).map(
			({ processor, cut, tokens }) => html`
				${processor !== null && html`<${CutLine} key=${processor} processor=${processor} cut=${cut} shown=${tokens.length} />`}
				${tokens.map((entry) => {
					place += 1;
					const at = place;
					return html`<li key=${entry.token_id}><button type="button" class=${entry.kept ? "row" : "row cut"}
						tabindex=${at === active ? 0 : -1} onFocus=${() => setActive(at)} onClick=${() => onPick?.(entry)}
						data-token=${entry.token_id} data-probability=${entry.probability}
						data-processed=${entry.processed_probability} data-cut=${entry.cut_by ?? ""}>
						<span class="rank">${entry.rank}</span><${Token} text=${entry.text} limit=${22} />
						<span class="bar"><i class="before" style=${{ "--w": entry.probability / greatest }}></i>
							${entry.kept && html`<i class="after" style=${{ "--w": entry.processed_probability / greatest }}></i>`}</span>
						<span class="num">${percent(entry.probability)}</span>
						<span class="num">${entry.kept ? percent(entry.processed_probability) : html`cut<span class="hidden"> by ${entry.cut_by ?? "the model"}</span>`}</span>
					</button></li>`;
				})}`,
		)}</ol>
		<p class="note">${data.num_kept} of ${data.vocab_size} tokens can be drawn. Tokens that are not shown have
			${" "}${percent(data.hidden_probability)} of the drawn probability.</p>
	</div>`;
}
