// What a browser calls itself, in two words.

/** Every browser claims to be several: the first of these that it names is the one. */
const BROWSERS: readonly (readonly [string, string])[] = [["Edg/", "Edge"], ["OPR/", "Opera"], ["Firefox/", "Firefox"], ["Chrome/", "Chrome"], ["Safari/", "Safari"]];

/** The browser and its system, like `Firefox, Linux`. */
export function browserOf(agent: string | null): string {
  if (!agent) return "unknown";
  const name = BROWSERS.find(([mark]) => agent.includes(mark))?.[1];
  const system = /Windows|Android|iPhone|iPad|Mac OS|CrOS|Linux/.exec(agent)?.[0];
  return name ? `${name}${system ? `, ${system}` : ""}` : agent.slice(0, 40);
}
