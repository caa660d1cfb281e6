// What is wrong with the page that a browser shows, as a list of sentences.
() => {
  const faults = [];
  const view = document.documentElement;
  const shown = (x) => x.checkVisibility() && x.getClientRects().length > 0;
  const named = (x) => `${x.outerHTML.slice(0, 80)} (${x.textContent.trim().slice(0, 40)})`;
  const wide = (x) => x.scrollWidth > x.clientWidth + 1;

  for (const x of [view, document.querySelector(".content")])
    if (wide(x)) faults.push(`wider than its place by ${x.scrollWidth - x.clientWidth}: ${named(x)}`);

  // Code may have lines of 100 characters, which a phone has to scroll.
  if (view.clientWidth > 1200)
    for (const pre of document.querySelectorAll("pre"))
      if (shown(pre) && wide(pre)) faults.push(`a line of code does not fit: ${named(pre)}`);

  for (const img of document.images) {
    if (!img.complete || !img.naturalWidth) faults.push(`not loaded: ${img.src}`);
    if (!img.alt.trim()) faults.push(`without a description: ${img.src}`);
  }
  for (const svg of document.querySelectorAll("svg[role=img]"))
    if (!svg.getAttribute("aria-label")) faults.push(`without a description: ${named(svg)}`);

  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  for (const x of document.querySelectorAll(dark ? ".only-light" : ".only-dark"))
    if (shown(x)) faults.push(`made for the other theme: ${named(x)}`);

  // Colours as numbers: a canvas reads whatever CSS can say.
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const known = new Map();
  const rgba = (color) => {
    if (!known.has(color)) {
      canvas.clearRect(0, 0, 1, 1);
      canvas.fillStyle = color;
      canvas.fillRect(0, 0, 1, 1);
      known.set(color, canvas.getImageData(0, 0, 1, 1).data);
    }
    return known.get(color);
  };
  const background = (x) => {
    for (; x; x = x.parentElement) {
      const color = getComputedStyle(x).backgroundColor;
      if (rgba(color)[3] === 255) return color;
    }
    return "white";
  };
  const luminance = (color) => {
    const [r, g, b] = [...rgba(color)].map((c) =>
      c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4
    );
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => {
    const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  const pale = new Map();
  const texts = document.createTreeWalker(document.querySelector("article"), NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const x = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !shown(x) || x.closest("svg, .headerlink")) continue;
    const [color, behind] = [getComputedStyle(x).color, background(x)];
    const ratio = contrast(color, behind);
    if (ratio < 4.5) pale.set(`${color} on ${behind}`, `${ratio.toFixed(2)}: ${named(x)}`);
  }
  for (const [colors, what] of pale) faults.push(`hard to read, ${colors}, contrast ${what}`);
  return faults;
}
