import { PresenceManager, presenceKey, type Here } from "../lib/PresenceManager.ts";
import { CALL_MAX, WebRTCSignaling } from "../lib/WebRTCSignaling.ts";
import { renderList } from "../lib/list.ts";
import { avatar, find, framed, h, notice, showProblems, startApp } from "../lib/ui.ts";

const LOG_MAX = 100;

const app = await startApp("Call");
const { nameOf } = app;
const name = new URLSearchParams(location.search).get("room") ?? "lobby";
// With acknowledgements: a signal that was not accepted is sent again.
const room = app.rooms.getChannel(`webrtc:${name}`, { ack: true, presenceKey: presenceKey(app.me.id, app.tab) });
const presence = new PresenceManager<Here>(room, { user: app.me.id, tab: app.tab, name: app.me.name });
// Without ICE servers, only direct paths are found: the same machine or network. Add STUN and TURN servers for the
// internet.
const signaling = new WebRTCSignaling(room, presence, app.tab, { iceServers: [] }, Number(new URLSearchParams(location.search).get("answer")) || undefined);

let camera: MediaStream | undefined;
let screen: MediaStream | undefined;
let joined = false;

interface Tile {
  key: string;
  user: string;
  label: string;
  stream: MediaStream | undefined;
  mine: boolean;
  screen: boolean;
  state: string;
}

function tiles(): Tile[] {
  if (!joined) return [];
  const mine: Tile[] = [{ key: "me", user: app.me.id, label: "You", stream: camera, mine: true, screen: false, state: "" }];
  if (screen) mine.push({ key: "my-screen", user: app.me.id, label: "Your screen", stream: screen, mine: true, screen: true, state: "" });
  const here = new Map(presence.tabs().map((tab) => [tab.tab, tab]));
  const others = [...signaling.peers.values()].flatMap((pair): Tile[] => {
    const tab = here.get(pair.tab);
    const user = tab?.user ?? "";
    const label = nameOf(user);
    const state = pair.peer.pc.connectionState;
    const streams = [...pair.peer.streams.values()];
    const screens = streams.filter((stream) => stream.id === tab?.screen);
    const cameras = streams.filter((stream) => stream.id !== tab?.screen);
    return [
      { key: pair.tab, user, label, stream: cameras[0], mine: false, screen: false, state },
      ...screens.map((stream): Tile => ({ key: `${pair.tab} screen`, user, label: `${label}'s screen`, stream, mine: false, screen: true, state })),
    ];
  });
  return [...mine, ...others];
}

const render = framed(() => {
  const shown = tiles();
  renderList(find(".tiles"), shown, (tile) => tile.key, (tile) => `${tile.stream?.id} ${tile.stream?.getVideoTracks().length} ${tile.state} ${tile.label}`, drawTile, "section");
  const members = signaling.members();
  const lobby = find(".lobby");
  lobby.hidden = joined;
  lobby.textContent = signaling.full()
    ? `The call is full: ${CALL_MAX} are in it.`
    : members.length ? `In the call: ${members.map((member) => nameOf(member.user)).join(", ")}.` : "Nobody is in the call yet.";
  find<HTMLButtonElement>(".join").disabled = signaling.full();
  for (const selector of [".mic", ".cam", ".screen", ".leave", ".say"]) find(selector).hidden = !joined;
  find(".join").hidden = joined;
  const data = document.documentElement.dataset;
  const states = [...signaling.peers.values()].map((pair) => pair.peer.pc.connectionState);
  data.connected = String(states.filter((state) => state === "connected").length);
  data.peers = String(states.length);
  data.stable = String([...signaling.peers.values()].every((pair) => pair.peer.pc.signalingState === "stable"));
  data.tries = String(Math.max(0, ...[...signaling.peers.values()].map((pair) => pair.tries)));
  data.tiles = String(shown.length);
});

function drawTile(tile: Tile, element: HTMLElement): void {
  element.className = `tile${tile.mine ? " mine" : ""}`;
  element.toggleAttribute("data-screen", tile.screen);
  element.setAttribute("aria-label", tile.label);
  if (tile.stream?.getVideoTracks().length) {
    const video = h("video", { autoplay: true, playsinline: true });
    video.muted = tile.mine;
    video.srcObject = tile.stream;
    element.append(video);
    void video.play().catch(() => undefined);
  } else {
    const mark = avatar(tile.user, nameOf(tile.user));
    mark.classList.add("large");
    element.append(mark);
  }
  const state = tile.state && tile.state !== "connected" ? ` · ${tile.state === "new" ? "calling" : tile.state}` : "";
  element.append(h("span", { class: "label" }, avatar(tile.user, nameOf(tile.user)), tile.label + state));
}

async function media(): Promise<void> {
  if (!navigator.mediaDevices) return notice("A browser gives the camera to https and localhost alone: you see and hear the others, they do not see you.", "problem");
  try {
    camera = await navigator.mediaDevices.getUserMedia({ audio: true, video: { width: 640, height: 360 } });
  } catch (error) {
    notice(`No camera or microphone (${(error as Error).name}): you see and hear the others.`, "problem");
  }
}

function send(): void {
  const of = (stream: MediaStream | undefined): [MediaStreamTrack, MediaStream][] => stream?.getTracks().map((track) => [track, stream]) ?? [];
  signaling.setTracks([...of(camera), ...of(screen)]);
  presence.update({ screen: screen?.id });
  render();
}

async function join(): Promise<void> {
  find<HTMLButtonElement>(".join").disabled = true;
  await media();
  // Two tabs of one person in one room would cause audio feedback.
  const twice = signaling.members().some((member) => member.user === app.me.id);
  if (twice) toggle("mic", false);
  joined = true;
  signaling.join();
  send();
}

function toggle(which: "mic" | "cam", on: boolean): void {
  for (const track of (which === "mic" ? camera?.getAudioTracks() : camera?.getVideoTracks()) ?? []) track.enabled = on;
  find(`.${which}`).setAttribute("aria-pressed", String(on));
}

async function share(): Promise<void> {
  if (screen) {
    screen.getTracks().forEach((track) => track.stop());
    screen = undefined;
    return shared();
  }
  try {
    screen = await navigator.mediaDevices.getDisplayMedia({ video: true });
  } catch (error) {
    return notice(`The screen is not shared (${(error as Error).name}).`);
  }
  screen.getVideoTracks()[0]?.addEventListener("ended", () => {
    screen = undefined;
    shared();
  });
  shared();
}

function shared(): void {
  find(".screen").setAttribute("aria-pressed", String(Boolean(screen)));
  send();
}

function leave(): void {
  signaling.leave();
  for (const stream of [camera, screen]) stream?.getTracks().forEach((track) => track.stop());
  camera = screen = undefined;
  joined = false;
  render();
}

function log(who: string, text: string): void {
  const list = find(".log");
  list.append(h("li", {}, h("strong", {}, who), ` ${text}`));
  while (list.children.length > LOG_MAX) list.firstElementChild?.remove();
  list.scrollTop = list.scrollHeight;
}

find(".join").addEventListener("click", () => void join());
find(".leave").addEventListener("click", leave);
find(".screen").addEventListener("click", () => void share());
for (const which of ["mic", "cam"] as const) find(`.${which}`).addEventListener("click", () => toggle(which, find(`.${which}`).getAttribute("aria-pressed") !== "true"));
const say = find<HTMLFormElement>(".say");
say.addEventListener("submit", (event) => {
  event.preventDefault();
  const input = say.querySelector<HTMLInputElement>("input")!;
  const text = input.value.trim();
  if (!text) return;
  if (!signaling.say(text)) return notice("Nobody is connected yet.");
  log("You", text);
  input.value = "";
});

signaling.on("change", render);
signaling.on("problem", (text) => notice(text, "problem"));
signaling.on("message", (tab, text) => log(nameOf(presence.tabs().find((one) => one.tab === tab)?.user ?? "somebody"), text));
presence.on("sync", render);
room.on("status", render);
showProblems(room, presence);
window.addEventListener("pagehide", () => signaling.close());
// A page that is restored from the back/forward cache has left the call: it reloads.
window.addEventListener("pageshow", ({ persisted }) => persisted && location.reload());
render();

// For tests: decoded frames of each remote stream.
declare global {
  interface Window {
    framesDecoded: () => Promise<number[]>;
  }
}
window.framesDecoded = async () =>
  Promise.all(
    [...signaling.peers.values()].map(async (pair) => {
      let frames = 0;
      (await pair.peer.pc.getStats()).forEach((report: { type: string; kind?: string; framesDecoded?: number }) => {
        if (report.type === "inbound-rtp" && report.kind === "video") frames += report.framesDecoded ?? 0;
      });
      return frames;
    }),
  );
