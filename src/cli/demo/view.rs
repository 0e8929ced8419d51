//! The table of the demo. On a terminal, finished tickets scroll up and tickets in progress are below them. Elsewhere
//! there is one line for each ticket when it ends; with `--json`, one object.
use super::support_desk::{Score, Ticket};
use crate::cli::output;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::{collections::HashSet, fmt::Write, io::IsTerminal};

/// Tickets in progress that are shown at once.
const LIVE_MAX: usize = 8;

pub(super) struct View {
    json: bool,
    widths: Widths,
    bar: Option<ProgressBar>,
    over: HashSet<i64>,
    last: String,
    /// Whether the header is written.
    has_header: bool,
}

/// Widths of the columns in characters.
#[derive(Clone, Copy)]
struct Widths {
    subject: usize,
    offers: usize,
    line: usize,
}

impl Widths {
    fn of(terminal: Option<usize>) -> Self {
        let line = terminal.unwrap_or(usize::MAX);
        let (subject, offers) = match line {
            0..110 => (18, 22),
            110..150 => (28, 32),
            _ => (38, 44),
        };
        Self { subject, offers, line }
    }

    fn row(self, [id, subject, offers, winner, ms, result]: [&str; 6]) -> String {
        let (s, o) = (self.subject, self.offers);
        let (subject, offers) = (cut(subject, s), cut(offers, o));
        let line = format!("{id:>4}  {subject:<s$} {offers:<o$} {winner:<11} {ms:>5}  {result}");
        cut(line.trim_end(), self.line)
    }

    fn ticket(self, ticket: &Ticket) -> String {
        let state = || {
            let state = ticket.state.as_deref().unwrap_or("no task");
            let reason = ticket.state_reason.as_deref().map(|reason| format!(" ({reason})"));
            format!("{state}{}", reason.unwrap_or_default())
        };
        let ms = ticket.took_ms.map_or_else(String::new, |ms| format!("{ms:.0}"));
        let (offers, agent) =
            (ticket.offers.as_deref().unwrap_or("-"), ticket.agent.as_deref().unwrap_or("-"));
        let result = ticket.result.clone().unwrap_or_else(state);
        self.row([&ticket.id.to_string(), &ticket.subject, offers, agent, &ms, &result])
    }

    /// One line for each ticket in progress.
    fn live(self, tickets: &[Ticket]) -> String {
        let mut text = String::new();
        let working = tickets.iter().filter(|ticket| !ticket.is_over() && ticket.state.is_some());
        let working: Vec<_> = working.collect();
        for ticket in working.iter().take(LIVE_MAX) {
            let state = ticket.state.as_deref().unwrap_or_default();
            let _ = writeln!(
                text,
                "{}",
                self.ticket(&Ticket { result: Some(format!("{state} …")), ..(*ticket).clone() })
            );
        }
        if working.len() > LIVE_MAX {
            let _ = writeln!(text, "      and {} more in progress", working.len() - LIVE_MAX);
        }
        text
    }
}

impl View {
    pub(super) fn new(json: bool) -> Self {
        let bar = (!json && std::io::stdout().is_terminal()).then(|| {
            let bar = ProgressBar::new(0);
            let style = ProgressStyle::with_template("{bar:40} {pos} of {len} tickets\n{msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self {
            json,
            widths: Widths::of(output::width()),
            bar,
            over: HashSet::new(),
            last: String::new(),
            has_header: false,
        }
    }

    /// Writes a line to standard error.
    pub(super) fn note(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// Shows changes. Returns whether there were any.
    pub(super) fn show(&mut self, tickets: &[Ticket]) -> bool {
        if !self.has_header && !self.json {
            self.has_header = true;
            self.line(&self.widths.row(["", "TICKET", "OFFERS (SCORE)", "WINNER", "MS", "RESULT"]));
        }
        let mut moved = false;
        for ticket in tickets.iter().filter(|ticket| ticket.is_over()) {
            if self.over.insert(ticket.id) {
                moved = true;
                if self.json { output::json(&object(ticket)) } else { self.line(&self.widths.ticket(ticket)) }
            }
        }
        let live = self.widths.live(tickets);
        moved |= live != self.last;
        if let Some(bar) = &self.bar {
            bar.set_length(tickets.len() as u64);
            bar.set_position(tickets.iter().filter(|ticket| ticket.is_over()).count() as u64);
            bar.set_message(live.clone());
        }
        self.last = live;
        moved
    }

    /// Writes the summary and what each agent did.
    pub(super) fn finish(&mut self, tickets: &[Ticket], agents: &[Score]) {
        self.show(tickets);
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        let done = tickets.iter().filter(|ticket| ticket.is_done()).count();
        let slowest = tickets.iter().filter_map(|ticket| ticket.took_ms).fold(0.0, f64::max);
        if self.json {
            let agents: Vec<_> = agents.iter().map(|a| json!({ "agent_id": a.agent, "won": a.won, "failed": a.lost, "ms": a.ms, "microdollars": a.microdollars })).collect();
            output::json(&json!({ "tickets": tickets.len(), "done": done, "ms": slowest, "agents": agents }));
            return;
        }
        output::line(format!(
            "\n{done} of {} tickets sorted, the last {slowest:.0} ms after the insert\n",
            tickets.len()
        ));
        let cost = |micro: i64| format!("${:.6}", micro as f64 / 1e6);
        let rows = agents.iter().map(|a| {
            let ms = a.ms.map_or_else(|| "-".into(), |ms| format!("{ms:.0} ms"));
            [format!("  {}", a.agent), a.won.to_string(), a.lost.to_string(), ms, cost(a.microdollars)]
        });
        output::table(["  AGENT", "WON AND DONE", "LOST OR FAILED", "MEAN TIME", "COST"], rows);
        if done < tickets.len() {
            output::line("\nnot done:");
        }
        for ticket in tickets.iter().filter(|ticket| !ticket.is_done()) {
            output::line(self.widths.ticket(ticket));
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| output::line(text)),
            None => output::line(text),
        }
    }
}

fn object(ticket: &Ticket) -> serde_json::Value {
    json!({
        "ticket": ticket.id,
        "subject": ticket.subject,
        "task_id": ticket.task_id,
        "state": ticket.state,
        "offers": ticket.offers,
        "agent_id": ticket.agent,
        "result": ticket.result,
        "ms": ticket.took_ms,
    })
}

/// Truncates text to `letters_max` characters, with an ellipsis.
fn cut(text: &str, letters_max: usize) -> String {
    if text.chars().count() <= letters_max {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(letters_max.saturating_sub(1)).collect();
    short.push('…');
    short
}
