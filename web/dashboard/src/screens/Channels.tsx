// The channels of the daemon: members, traffic, and refusals with their reasons. For admins.
import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { readChannel, readChannels } from "../api.ts";
import { count } from "../format.ts";
import { useRead } from "../read.ts";
import { href, query, setQuery } from "../route.ts";
import { isAdmin } from "../session.ts";
import type { Channel, Flow, Refusal } from "../types.ts";
import { AgentLink, Ago, At, Empty, Panel, Trouble } from "../ui.tsx";

const EVERY_MS = 3000;

const rate = (flow: Flow): string => `${flow.messages_in.toFixed(1)} in, ${flow.messages_out.toFixed(1)} out`;

function NeedsAdmin(): JSX.Element {
  return <Empty title="Channels are shown to admins"><p>They belong to the daemon and not to an org. <code>convoke dashboard --role admin</code> prints a link.</p></Empty>;
}

export function Channels({ org }: { org: string }): JSX.Element {
  return isAdmin.value ? <List org={org} /> : <NeedsAdmin />;
}

function List({ org }: { org: string }): JSX.Element {
  const prefix = query.value.get("prefix") ?? "";
  const after = useSignal("");
  const { data, error } = useRead(`channels ${prefix} ${after.value}`, (abort) => readChannels({ prefix, after: after.value, limit: 100 }, abort), () => true, EVERY_MS).value;
  const last = data?.channels.at(-1)?.topic;
  return (
    <>
      <h1>Channels</h1>
      <form class="filters" role="search" aria-label="Filter of channels" onSubmit={(event) => event.preventDefault()}>
        <label>Topics that begin with<input value={prefix} spellcheck={false} autocomplete="off" data-focus="filter" onChange={(event) => {
          after.value = "";
          setQuery({ prefix: event.currentTarget.value.trim() }, { replace: true });
        }} /></label>
      </form>
      {error ? <Trouble problem={error} /> : null}
      <div class="list-head"><span role="status" class="soft">{data ? `${count(data.total)} ${data.total === 1 ? "channel" : "channels"}` : "Loading…"}</span>{after.value ? <button type="button" class="small" onClick={() => (after.value = "")}>First</button> : null}</div>
      {data && !data.channels.length ? <Empty title="No channel has members" /> : null}
      {data?.channels.length ? (
        <div class="scroll" tabIndex={0} role="region" aria-label="Channels">
          <table class="plain-table">
            <caption class="hidden">Channels with members</caption>
            <thead><tr><th>Topic</th><th class="number">Public members</th><th class="number">Private members</th><th class="number">Messages a second</th></tr></thead>
            <tbody>{data.channels.map(({ topic, public_members, private_members, per_second }) => <tr key={topic}><th scope="row"><a href={href(org, "channels", topic)}>{topic}</a></th><td class="number">{count(public_members)}</td><td class="number">{count(private_members)}</td><td class="number">{rate(per_second)}</td></tr>)}</tbody>
          </table>
        </div>
      ) : null}
      {data && data.channels.length === 100 && last ? <p class="further"><button type="button" onClick={() => (after.value = last)}>Next 100</button></p> : null}
    </>
  );
}

export function OneChannel({ org, topic }: { org: string; topic: string }): JSX.Element {
  return isAdmin.value ? <One org={org} topic={topic} /> : <NeedsAdmin />;
}

function One({ org, topic }: { org: string; topic: string }): JSX.Element {
  const { data, error } = useRead<Channel>(`channel ${topic}`, (abort) => readChannel(topic, abort), () => true, EVERY_MS).value;
  return (
    <>
      <h1>{topic}</h1>
      {error ? <Trouble problem={error} /> : null}
      {data?.rooms.map((room) => (
        <Panel key={String(room.private)} title={room.private ? "Private room" : "Public room"} class="round" aside={<span class="soft">{rate(room.per_second)} a second</span>}>
          <div class="scroll" tabIndex={0} role="region" aria-label="Members"><table>
            <caption class="hidden">Members</caption>
            <thead><tr><th class="number">Connection</th><th>Role</th><th>User</th><th>Agent</th><th>Joined</th></tr></thead>
            <tbody>{room.members.map((member) => <tr key={`${member.connection} ${member.presence_key}`}><td class="number">{member.connection}</td><td>{member.role}</td><td>{member.sub ?? "–"}</td><td>{member.agent ? <AgentLink org={org} id={member.agent} /> : "–"}</td><td><Ago at={member.joined_at} /></td></tr>)}</tbody>
          </table></div>
          {room.member_count > room.members.length ? <p class="soft">{count(room.members.length)} of {count(room.member_count)} members are shown.</p> : null}
          <Refusals list={room.refusals} />
        </Panel>
      ))}
      {data?.refusals.length ? <Panel title="Refused"><Refusals list={data.refusals} /></Panel> : null}
    </>
  );
}

function Refusals({ list }: { list: Refusal[] }): JSX.Element | null {
  if (!list.length) return null;
  return <ul class="rows">{list.map((refusal, at) => <li key={at}><b>{refusal.event}: {refusal.code}</b><small>{refusal.reason}{refusal.connection === null ? "" : ` · connection ${refusal.connection}`} · <At at={refusal.at} /></small></li>)}</ul>;
}
