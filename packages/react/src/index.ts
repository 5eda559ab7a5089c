/**
 * React hooks over a session of `reattach`. Each is "subscribe and snapshot", and renders its
 * component only when what it answers has changed. Nothing touches `window` on import.
 *
 * @packageDocumentation
 */

export {
  useConflicts,
  useDevices,
  useField,
  useLocal,
  usePresence,
  useRejected,
  useSession,
  useStatus,
} from "./hooks.js";
export type { Present } from "./presence.js";
export { SessionProvider, type SessionProviderProps } from "./provider.js";
export {
  type Saved,
  SaveStatus,
  type SaveStatusProps,
  savedAs,
  WORDS,
  type Words,
} from "./save-status.js";
