import { act, cleanup, render, screen } from "@testing-library/react";
import { type ReactNode, StrictMode } from "react";
import { renderToString } from "react-dom/server";
import type { Session } from "reattach";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import {
  SaveStatus,
  SessionProvider,
  savedAs,
  useConflicts,
  useDevices,
  useField,
  useLocal,
  usePresence,
  useRejected,
  useSession,
  useStatus,
} from "../src/index.js";
import { type Draft, Server } from "./server.js";

let server: Server;
let session: Session<Draft>;

beforeEach(() => {
  server = new Server();
  session = server.connect();
});

afterEach(async () => {
  cleanup();
  await session.close();
});

const within = (children: ReactNode) => (
  <StrictMode>
    <SessionProvider session={session} fallback="wait">
      {children}
    </SessionProvider>
  </StrictMode>
);

/** Renders below the provider, and waits until there is a state. */
async function show(children: ReactNode) {
  const shown = render(within(children));
  await act(() => session.ready);
  await vi.waitFor(() => expect(session.status.connection).toBe("online"));
  await settle();
  return shown;
}

/** Lets everything that is under way arrive. */
async function settle() {
  await act(() => new Promise((resolve) => setTimeout(resolve, 20)));
}

describe("SessionProvider", () => {
  test("shows the fallback until there is a state", async () => {
    const { container } = render(within("here"));
    expect(container.textContent).toBe("wait");
    await act(() => session.ready);
    expect(container.textContent).toBe("here");
  });

  test("says why there will be none", async () => {
    server.known = false;
    render(
      <SessionProvider session={session} fallback="wait" failed={({ code }) => code}>
        here
      </SessionProvider>,
    );
    await screen.findByText("session_not_found");
  });

  test("renders the fallback on a server, where there is no window", () => {
    expect(renderToString(within("here"))).toContain("wait");
  });

  test("is told of when it is missing", () => {
    vi.spyOn(console, "error").mockImplementation(() => {});
    const Lost = () => useStatus().connection;
    expect(() => render(<Lost />)).toThrow(/SessionProvider/);
    vi.restoreAllMocks();
  });

  test("goes over to another session", async () => {
    const Title = () => <p>{useSession((state: Draft) => state.title)}</p>;
    const { rerender, container } = await show(<Title />);
    const other = new Server();
    const another = other.connect();
    await another.ready;
    rerender(
      <SessionProvider session={another}>
        <Title />
      </SessionProvider>,
    );
    act(() => void another.set("/title", "Another"));
    await settle();
    expect(container.textContent).toBe("Another");
    await another.close();
  });
});

describe("useSession", () => {
  test("renders only when its part changed", async () => {
    let renders = 0;
    const Title = () => {
      renders++;
      return <p>{useSession((state: Draft) => state.title)}</p>;
    };
    const { container } = await show(<Title />);
    const before = renders;
    act(() => server.commit("count", 5));
    await settle();
    expect(session.state.count).toBe(5);
    expect(renders).toBe(before);
    act(() => server.commit("title", "Two"));
    await settle();
    expect(container.textContent).toBe("Two");
    expect(renders).toBeGreaterThan(before);
  });

  test("takes a selector that makes its answer anew, with isEqual to spare renders", async () => {
    let renders = 0;
    const same = (one: string[], other: string[]) => one.join() === other.join();
    const Steps = () => {
      renders++;
      const texts = useSession((state: Draft) => state.steps.map(({ text }) => text), same);
      return <p>{texts.join()}</p>;
    };
    const { container } = await show(<Steps />);
    const before = renders;
    act(() => server.commit("steps", [{ id: "s2", text: "Welcome" }]));
    await settle();
    expect(renders).toBe(before);
    act(() => server.commit("steps", [{ id: "s2", text: "Goodbye" }]));
    await settle();
    expect(container.textContent).toBe("Goodbye");
  });

  test("without a selector it is the session, and renders nothing", async () => {
    let renders = 0;
    const Button = () => {
      renders++;
      const mine = useSession<Draft>();
      return (
        <button type="button" onClick={() => mine.set("/title", "Pressed")}>
          press
        </button>
      );
    };
    await show(<Button />);
    const before = renders;
    act(() => screen.getByRole("button").click());
    await settle();
    expect(session.confirmed.title).toBe("Pressed");
    expect(renders).toBe(before);
  });
});

test("useField reads and sets a path, through ids of elements too", async () => {
  const Field = ({ path }: { path: string }) => {
    const [value, set] = useField<string>(path);
    return (
      <input aria-label={path} value={value ?? "none"} onChange={(e) => set(e.target.value)} />
    );
  };
  await show(
    ["/title", "/steps/#s1/text", "/no/where", "/a~1b"].map((p) => <Field key={p} path={p} />),
  );
  const value = (path: string) => (screen.getByLabelText(path) as HTMLInputElement).value;
  expect(value("/title")).toBe("One");
  expect(value("/steps/#s1/text")).toBe("Welcome");
  expect(value("/no/where")).toBe("none");
  expect(value("/a~1b")).toBe("none");
  act(() => void session.set("/title", "Two"));
  await settle();
  expect(value("/title")).toBe("Two");
});

test("useLocal keeps a value of this device", async () => {
  const Caret = () => {
    const [at, set] = useLocal<number>("caret");
    return (
      <button type="button" onClick={() => set((at ?? 0) + 1)}>
        {at ?? "none"}
      </button>
    );
  };
  await show(<Caret />);
  const button = screen.getByRole("button");
  expect(button.textContent).toBe("none");
  act(() => button.click());
  act(() => button.click());
  expect(button.textContent).toBe("2");
  expect(session.local("caret").get()).toBe(2);
});

test("useRejected lists what was refused, until it is dealt with", async () => {
  const Refused = () => (
    <ul>
      {useRejected().map((one) => (
        <li key={one.ref}>{one.code}</li>
      ))}
    </ul>
  );
  await show(<Refused />);
  server.refuse = true;
  act(() => void session.set("/title", "No"));
  await settle();
  expect(screen.getByRole("listitem").textContent).toBe("forbidden");
  act(() => session.rejected[0]?.discard());
  await settle();
  expect(screen.queryByRole("listitem")).toBeNull();
});

test("useConflicts lists both values", async () => {
  const Both = () => (
    <p>{useConflicts().map(({ kept, lost }) => `${kept.value} over ${lost.value}`)}</p>
  );
  const { container } = await show(<Both />);
  const conflict = {
    id: "c1",
    path: "/title",
    policy: "latest",
    status: "auto",
    kept: { value: "Two" },
    lost: { value: "Three" },
    version: 2,
  };
  act(() => server.commit("title", "Two", { conflicts: [conflict] }));
  await settle();
  expect(container.textContent).toBe("Two over Three");
});

test("useDevices lists the devices", async () => {
  const Names = () => <p>{useDevices().map(({ name }) => name)}</p>;
  const { container } = await show(<Names />);
  expect(container.textContent).toBe("A phone");
});

test("usePresence shows who is there, and tells who comes what one said before", async () => {
  const Carets = () => {
    const [others, tell] = usePresence<number>();
    return (
      <button type="button" onClick={() => tell(7)}>
        {others.map(({ deviceId, data }) => `${deviceId} at ${data} `)}
      </button>
    );
  };
  const { container } = await show(<Carets />);
  act(() => server.device("d2", true, 3));
  await settle();
  expect(container.textContent).toBe("d2 at 3 ");
  act(() => screen.getByRole("button").click());
  await settle();
  expect(server.present).toEqual([7]);
  act(() => server.device("d2", true, 4));
  await settle();
  expect(container.textContent).toBe("d2 at 4 ");
  expect(server.present).toEqual([7]);
  act(() => server.device("d2", false));
  await settle();
  expect(container.textContent).toBe("");
  const told = server.present.length;
  act(() => server.device("d3", true));
  await settle();
  expect(server.present.length).toBeGreaterThan(told);
});

describe("what devices say of themselves", () => {
  const Others = () => {
    const [others, tell] = usePresence<number>();
    return (
      <button type="button" onClick={() => tell(7)}>
        {others.map(({ deviceId, data }) => `${deviceId} at ${data} `)}
      </button>
    );
  };

  test("before a component asks for it is not forgotten", async () => {
    const { container, rerender } = await show("nobody asks");
    act(() => server.device("d2", true, 3));
    await settle();
    rerender(within(<Others />));
    expect(container.textContent).toBe("d2 at 3 ");
    rerender(within("nobody asks"));
    rerender(within(<Others />));
    expect(container.textContent).toBe("d2 at 3 ");
  });

  test("is over when they go: who comes back says it anew", async () => {
    const { container } = await show(<Others />);
    act(() => server.device("d2", true, 3));
    await settle();
    act(() => server.device("d2", false));
    await settle();
    act(() => server.device("d2", true));
    await settle();
    expect(container.textContent).toBe("");
    act(() => server.device("d2", true, 4));
    await settle();
    expect(container.textContent).toBe("d2 at 4 ");
  });

  test("may come before the list that has them online", async () => {
    const { container } = await show(<Others />);
    act(() => server.say("d3", 5));
    await settle();
    expect(container.textContent).toBe("");
    act(() => server.device("d3", true));
    await settle();
    expect(container.textContent).toBe("d3 at 5 ");
  });

  test("is told again when this one was away: the others have forgotten it", async () => {
    await show(<Others />);
    act(() => screen.getByRole("button").click());
    await settle();
    const told = server.present.length;
    act(() => server.cut());
    await vi.waitFor(() => expect(server.present.length).toBe(told + 1));
  });

  test("is of its session: another one's provider knows nothing of it", async () => {
    const { container, rerender } = await show(<Others />);
    act(() => server.device("d2", true, 3));
    await settle();
    const other = new Server();
    const another = other.connect();
    await act(() => another.ready);
    act(() => other.device("d2", true));
    rerender(
      <SessionProvider session={another}>
        <Others />
      </SessionProvider>,
    );
    await settle();
    expect(container.textContent).toBe("");
    await another.close();
  });
});

describe("SaveStatus", () => {
  const part = (container: Element, name: string) =>
    container.querySelector(`[data-part="${name}"]`)?.textContent;

  test("says bad news at once, good news when it has settled, and tells a screen reader", async () => {
    const { container } = await show(<SaveStatus className="where" />);
    const root = container.querySelector(".where");
    await vi.waitFor(() => expect(part(container, "saved")).toBe("Saved"));
    expect(part(container, "connection")).toBe("Online");
    expect(root?.getAttribute("data-connection")).toBe("online");
    server.silent = true;
    act(() => void session.set("/title", "Two"));
    await act(() => Promise.resolve());
    expect(part(container, "saved")).toBe("Saving…");
    expect(root?.getAttribute("data-saved")).toBe("saving");
    await vi.waitFor(() => expect(screen.getByRole("status").textContent).toBe("Online. Saving…"), {
      timeout: 3_000,
    });
  });

  test("claims no more than is true", () => {
    const { status } = session;
    expect(savedAs({ ...status, saved: true, savedOnDevice: false })).toBe("server");
    const unsaved = { ...status, saved: false } as const;
    expect(savedAs({ ...unsaved, savedOnDevice: true })).toBe("device");
    const none = { ...unsaved, savedOnDevice: false } as const;
    expect(savedAs({ ...none, storage: "durable", connection: "offline" })).toBe("saving");
    expect(savedAs({ ...none, storage: "memory", connection: "online" })).toBe("saving");
    expect(savedAs({ ...none, storage: "memory", connection: "offline" })).toBe("unsaved");
  });
});
