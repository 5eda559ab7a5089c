// Each device has one of eight colours, the server none of them.

import type { Device, Session } from "./api.js";

export interface Who {
  /** A class of the style sheet: d0 to d7, or server. */
  colour: string;
  name: string;
}

const COLOURS = 8;

export interface People {
  device(deviceId: string | null): Who;
  client(clientId: string | null): Who;
}

export function peopleOf(session: Session): People {
  const devices = new Map<string, Who>();
  session.devices.forEach((device, index) => {
    devices.set(device.id, { colour: `d${index % COLOURS}`, name: nameOf(device) });
  });
  const clients = new Map(session.clients.map((one) => [one.client_id, one.device_id]));
  const server: Who = { colour: "server", name: "server" };
  const device = (deviceId: string | null): Who =>
    deviceId === null || deviceId === ""
      ? server
      : (devices.get(deviceId) ?? { colour: "server", name: deviceId });
  return {
    device,
    client: (clientId) => device(clientId === null ? null : (clients.get(clientId) ?? null)),
  };
}

export function nameOf(device: Device): string {
  return device.name ?? device.id;
}
