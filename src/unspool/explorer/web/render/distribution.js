// The next token's distribution before and after the processors, with a line where each processor cuts.
// A pure function of the JSON form of NextTokens.

import { html, roving, useState } from "render/html.js";
import { Token, percent } from "render/tokens.js";

/**
 * @typedef {{ rank: number, token_id: number, text: string, probability: number, processed_probability: number,
 *   kept: boolean, cut_by: string | null }} Entry
 * @typedef {{ processor: string, count: number, probability: number }} Cut
 * @typedef {{ tokens: Entry[], processors: string[], num_kept: number, vocab_size: number, cuts: Cut[],
 *   hidden_probability: number }} Distribution
 */

/**
 * Return the shown tokens in sections: the kept ones, then those of each processor, last processor first.
 * @param {Distribution} data
 * @returns {{ processor: string | null, cut?: Cut, tokens: Entry[] }[]}
 */
export function sections({ tokens, processors, cuts }) {
	const from = (processor) => tokens.filter((each) => each.cut_by === processor);
	return [{ processor: null, tokens: from(null) }, ...[...processors].reverse().map((processor) => ({ processor,
		cut: cuts.find((each) => each.processor === processor),
		tokens: from(processor).sort((a, b) => b.probability - a.probability || a.token_id - b.token_id) })).filter(({ cut }) => cut)];
}

/**
 * @param {{ data: Distribution, onPick?: (entry: Entry) => void, label: string }} props
 */
export function DistributionChart({ data, onPick, label }) {
	const [active, setActive] = useState(0);
	const greatest = Math.max(1e-9, ...data.tokens.flatMap((each) => [each.probability, each.processed_probability]));
	let place = -1;
	return html`<div class="chart">
		<div class="charthead" aria-hidden="true"><span>rank</span><span>token</span>
			<span class="legend"><i class="after"></i>drawn <i class="before"></i>model</span>
			<span>model</span><span>drawn</span></div>
		<ol class="bars" aria-label=${label} onKeyDown=${(event) => roving(event, setActive)}>${sections(data).map(
			({ processor, cut, tokens }) => html`
				${cut && html`<li key=${processor} class="cutline" data-processor=${processor} data-count=${cut.count}><strong>${processor}</strong> cuts here:
					${" "}${cut.count} ${cut.count === 1 ? "token" : "tokens"}, ${percent(cut.probability)} of the model's probability</li>`}
				${tokens.map((entry) => {
					const at = (place += 1);
					return html`<li key=${entry.token_id}><button class=${entry.kept ? "row" : "row cut"}
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
