// A list of any length: only the rows in sight are in the page. It is one stop of the Tab key, and
// the arrow keys choose a row.

import {
  type KeyboardEvent,
  type ReactNode,
  useEffect,
  useId,
  useLayoutEffect,
  useRef,
  useState,
} from "react";

interface Props {
  label: string;
  count: number;
  height: number;
  row: (index: number) => ReactNode;
  /** The chosen row; -1: none. */
  chosen: number;
  choose: (index: number) => void;
  /** Enter, or a click. */
  act?: (index: number) => void;
  /** Told which rows are in sight. */
  seen?: (first: number, last: number) => void;
  /** Handles a key before the list does; says whether it did. */
  onKey?: (event: KeyboardEvent) => boolean;
  rowProps?: (index: number) => { [name: string]: string | number | boolean | undefined };
  role?: "listbox" | "tree";
  className?: string;
}

const MORE = 6;

export function VirtualList(props: Props) {
  const { label, count, height, row, chosen, choose, act, seen, onKey, role = "listbox" } = props;
  const id = useId();
  const box = useRef<HTMLDivElement>(null);
  const [view, look] = useState({ top: 0, size: 400 });
  const first = Math.max(0, Math.floor(view.top / height) - MORE);
  const last = Math.min(count - 1, Math.ceil((view.top + view.size) / height) + MORE);

  useLayoutEffect(() => {
    const element = box.current;
    if (element === null) return;
    const measure = () => look({ top: element.scrollTop, size: element.clientHeight });
    measure();
    const observer = new ResizeObserver(measure);
    observer.observe(element);
    return () => observer.disconnect();
  }, []);

  useEffect(() => seen?.(first, last), [seen, first, last]);

  useEffect(() => {
    const element = box.current;
    if (element === null || chosen < 0) return;
    const top = chosen * height;
    if (top < element.scrollTop) element.scrollTop = top;
    else if (top + height > element.scrollTop + element.clientHeight) {
      element.scrollTop = top + height - element.clientHeight;
    }
  }, [chosen, height]);

  const press = (event: KeyboardEvent) => {
    if (onKey?.(event)) return event.preventDefault();
    const page = Math.max(1, Math.floor(view.size / height) - 1);
    const steps: { [key: string]: number } = {
      ArrowDown: chosen + 1,
      ArrowUp: chosen - 1,
      PageDown: chosen + page,
      PageUp: chosen - page,
      Home: 0,
      End: count - 1,
    };
    const to = steps[event.key];
    if (to !== undefined && count > 0) choose(Math.min(count - 1, Math.max(0, to)));
    else if (event.key === "Enter" && chosen >= 0) act?.(chosen);
    else return;
    event.preventDefault();
  };

  const shown: ReactNode[] = [];
  for (let index = first; index <= last; index++) {
    shown.push(
      // biome-ignore lint/a11y/useKeyWithClickEvents: the list has the keys of all its rows.
      // biome-ignore lint/a11y/noStaticElementInteractions: its role is one of two.
      <div
        key={index}
        {...{
          id: `${id}-${index}`,
          role: role === "tree" ? "treeitem" : "option",
          "aria-selected": index === chosen,
          "aria-setsize": role === "tree" ? undefined : count,
          "aria-posinset": role === "tree" ? undefined : index + 1,
        }}
        className="row"
        style={{ transform: `translateY(${index * height}px)`, height }}
        onClick={() => {
          choose(index);
          act?.(index);
        }}
        {...props.rowProps?.(index)}
      >
        {row(index)}
      </div>,
    );
  }
  const visible = chosen >= first && chosen <= last;
  return (
    // biome-ignore lint/a11y/noStaticElementInteractions: its role is one of two.
    <div
      ref={box}
      className={`list ${props.className ?? ""}`}
      {...{
        role,
        "aria-label": label,
        tabIndex: 0,
        "aria-activedescendant": visible ? `${id}-${chosen}` : undefined,
      }}
      onKeyDown={press}
      onScroll={(event) =>
        look({ top: event.currentTarget.scrollTop, size: event.currentTarget.clientHeight })
      }
    >
      <div className="rows" role="presentation" style={{ height: count * height }}>
        {shown}
      </div>
    </div>
  );
}
