// Which words of a text are found in another.

const segmenter = new Intl.Segmenter(undefined, { granularity: "word" });

/** Short English words are in every text and would tell nothing; a number or a word of another script may be short. */
const tells = (word) => word.length >= 4 || /\d|[^\u0000-\u024f]/.test(word);

/** As words are compared: "Building's" is building. */
const plain = (word) => word.toLowerCase().replace(/['’]s$/, "");

const segments = (text) => [...segmenter.segment(text)];

export function tellingWords(text) {
  const words = segments(text).filter((part) => part.isWordLike).map((part) => plain(part.segment));
  return new Set(words.filter(tells));
}

/** Fills `place` with the text, the words that are in `found` marked. */
export function showMarked(place, text, found) {
  const nodes = segments(text).map(({ segment, isWordLike }) => {
    const isFound = isWordLike && found.has(plain(segment));
    const node = document.createElement(isFound ? "mark" : "span");
    node.textContent = segment;
    return isFound ? node : segment;
  });
  place.replaceChildren(...nodes);
}
