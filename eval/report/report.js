/* What the page gains where scripts run: one tab stop a figure and arrow keys in it, words at the pointer, sorting.
   Without it everything is there to read: a mark says its words as a title and to a screen reader, the palette is switched
   by a selector alone, and the tables stand in the order of the results. */
(() => {
  const tip = document.createElement('div');
  tip.className = 'tip'; tip.hidden = true; tip.setAttribute('aria-hidden', 'true');
  document.body.append(tip);
  const show = (spot) => {
    tip.textContent = spot.getAttribute('aria-label'); tip.hidden = false; shown = spot;
    const at = spot.getBoundingClientRect(), mine = tip.getBoundingClientRect();
    const left = Math.min(Math.max(8, at.left + at.width / 2 - mine.width / 2), innerWidth - mine.width - 8);
    const above = at.top - mine.height - 10;
    tip.style.left = left + 'px'; tip.style.top = (above > 8 ? above : at.bottom + 10) + 'px';
  };
  let shown = null;
  const hide = () => { tip.hidden = true; shown = null; };
  addEventListener('scroll', () => { if (shown) show(shown); }, { passive: true });
  addEventListener('keydown', (event) => { if (event.key === 'Escape') hide(); });
  for (const chart of document.querySelectorAll('svg.chart')) {
    const spots = [...chart.querySelectorAll('.spot')];
    spots.forEach((spot, place) => {
      spot.querySelector('title')?.remove();
      spot.setAttribute('tabindex', place ? '-1' : '0');
      spot.addEventListener('pointerenter', () => show(spot));
      spot.addEventListener('pointerleave', hide);
      spot.addEventListener('focus', () => show(spot));
      spot.addEventListener('blur', hide);
    });
    chart.addEventListener('keydown', (event) => {
      const place = spots.indexOf(document.activeElement), last = spots.length - 1;
      const next = { ArrowRight: place + 1, ArrowDown: place + 1, ArrowLeft: place - 1, ArrowUp: place - 1,
        Home: 0, End: last }[event.key];
      if (place < 0 || next === undefined || next < 0 || next > last) return;
      event.preventDefault();
      spots[place].setAttribute('tabindex', '-1');
      spots[next].setAttribute('tabindex', '0');
      spots[next].focus();
    });
  }
  const value = (row, place) => {
    const words = row.cells[place].textContent.trim(), number = parseFloat(words.replace(/,/g, ''));
    return Number.isNaN(number) ? words : number;
  };
  const compare = (a, b) => typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === 'number' ? -1 : 1;
  for (const table of document.querySelectorAll('table')) {
    const heads = table.tHead.rows[table.tHead.rows.length - 1].cells;
    [...heads].forEach((head, place) => {
      const button = document.createElement('button');
      button.type = 'button'; button.append(...head.childNodes); head.append(button);
      button.addEventListener('click', () => {
        const down = head.getAttribute('aria-sort') !== 'ascending';
        for (const other of heads) other.removeAttribute('aria-sort');
        head.setAttribute('aria-sort', down ? 'ascending' : 'descending');
        const rows = [...table.tBodies[0].rows];
        rows.sort((a, b) => (down ? 1 : -1) * compare(value(a, place), value(b, place)));
        table.tBodies[0].append(...rows);
      });
    });
  }
  let kept = null;
  try { kept = localStorage.getItem('drafter-factory-palette'); } catch { /* a file's page may keep nothing */ }
  for (const choice of document.querySelectorAll('input[name=palette]')) {
    choice.checked = kept ? choice.value === kept : choice.checked;
    choice.addEventListener('change', () => {
      try { localStorage.setItem('drafter-factory-palette', choice.value); } catch { /* as above */ }
    });
  }
  const links = new Map([...document.querySelectorAll('nav.contents a')].map((one) => [one.hash.slice(1), one]));
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((one) => one.isIntersecting)) {
      for (const link of links.values()) link.removeAttribute('aria-current');
      links.get(entry.target.id)?.setAttribute('aria-current', 'true');
    }
  }, { rootMargin: '-10% 0px -80% 0px' });
  for (const section of document.querySelectorAll('main > section')) seen.observe(section);
  addEventListener('beforeprint', () => { for (const one of document.querySelectorAll('details:not(.raw)')) one.open = true; });
})();
