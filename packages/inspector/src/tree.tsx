// The state as a tree; what changed is marked in it, and open.

import { type KeyboardEvent, useEffect, useMemo, useState } from "react";
import { type Mark, type Place, type Row, rows } from "./difference.js";
import { brief, count } from "./format.js";
import { VirtualList } from "./virtual.js";

const ROW = 24;
const SAYS: { [mark in Mark]: string } = {
  same: "",
  inside: "",
  added: "added",
  removed: "removed",
  changed: "changed",
};
const FEW = 40;

export function Tree(props: { root: Place; reveal: string | null }) {
  const { root, reveal } = props;
  const [chosen, choose] = useState<string | null>(null);
  const [turned, turn] = useState<ReadonlyMap<string, boolean>>(new Map());
  useEffect(() => {
    if (reveal === null) return;
    choose(reveal);
    turn((old) => {
      const open = new Map(old);
      for (let end = reveal.indexOf("/", 1); end > 0; end = reveal.indexOf("/", end + 1)) {
        open.set(reveal.slice(0, end), true);
      }
      return open;
    });
  }, [reveal]);
  const lines = useMemo(() => {
    const isOpen = (place: Place, level: number) =>
      turned.get(place.path) ??
      (place.mark === "inside" || (level < 3 && (place.children?.length ?? 0) <= FEW));
    return rows(root, isOpen);
  }, [root, turned]);
  const index = lines.findIndex((line) => line.place.path === chosen);
  const set = (line: Row, open: boolean) => turn(new Map(turned).set(line.place.path, open));

  const onKey = (event: KeyboardEvent): boolean => {
    const line = lines[index];
    if (line === undefined) return false;
    if (event.key === "ArrowRight" && line.open === false) set(line, true);
    else if (event.key === "ArrowLeft" && line.open === true) set(line, false);
    else if (event.key === "ArrowLeft") {
      const parent = line.place.path.slice(0, line.place.path.lastIndexOf("/"));
      if (parent !== "") choose(parent);
    } else return false;
    return true;
  };

  if (lines.length === 0) return <p className="soft tree-empty">An empty state: {"{}"}</p>;
  return (
    <VirtualList
      role="tree"
      className="tree"
      label="State"
      count={lines.length}
      height={ROW}
      chosen={index}
      choose={(to) => choose(lines[to]?.place.path ?? null)}
      act={(at) => {
        const line = lines[at];
        if (line !== undefined && line.open !== null) set(line, !line.open);
      }}
      onKey={onKey}
      rowProps={(at) => {
        const line = lines[at];
        return { "aria-level": line?.level ?? 1, "aria-expanded": line?.open ?? undefined };
      }}
      row={(at) => {
        const line = lines[at];
        return line === undefined ? null : <Leaf line={line} />;
      }}
    />
  );
}

function Leaf(props: { line: Row }) {
  const { place, level, open } = props.line;
  const says = SAYS[place.mark];
  return (
    <div className={`leaf ${place.mark}`} style={{ paddingInlineStart: (level - 1) * 16 + 4 }}>
      <span
        className={open === null ? "turn none" : open ? "turn open" : "turn"}
        aria-hidden="true"
      />
      <span className="key">{place.key}</span>
      <span className="colon">: </span>
      {place.mark === "changed" && place.before !== undefined && (
        <>
          <del className="value">{brief(place.before, 60)}</del>
          <span aria-hidden="true"> → </span>
        </>
      )}
      <Value place={place} open={open === true} />
      {says !== "" && <span className="says">{says}</span>}
    </div>
  );
}

function Value(props: { place: Place; open: boolean }) {
  const { value } = props.place;
  if (Array.isArray(value)) {
    const text = props.open
      ? `[${count(value.length)}]`
      : value.length === 0
        ? "[]"
        : `[${count(value.length)}] …`;
    return <span className="value box">{text}</span>;
  }
  if (typeof value === "object" && value !== null) {
    const fields = Object.keys(value);
    const some = `{ ${fields.slice(0, 6).join(", ")}${fields.length > 6 ? ", …" : ""} }`;
    const text = fields.length === 0 ? "{}" : props.open ? `{${count(fields.length)}}` : some;
    return <span className="value box">{text}</span>;
  }
  const kind = value === null ? "null" : typeof value;
  return <span className={`value ${kind}`}>{brief(value, 400)}</span>;
}
