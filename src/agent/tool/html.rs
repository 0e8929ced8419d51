//! The text of an HTML page, by the tokens of html5ever and without a tree: the time grows with the bytes alone,
//! whatever is nested in what. Pure.
use html5ever::{
    tendril::StrTendril,
    tokenizer::{
        BufferQueue, Tag, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts,
        states::RawKind,
    },
};
use std::cell::{Cell, RefCell};

/// Elements whose text is none of the page.
const SKIPPED: [&str; 7] = ["script", "style", "template", "svg", "iframe", "noframes", "object"];
/// Elements within a line.
const INLINE: [&str; 25] = [
    "a", "abbr", "b", "bdi", "bdo", "big", "cite", "code", "del", "dfn", "em", "font", "i", "ins", "kbd",
    "mark", "q", "s", "small", "span", "strong", "sub", "sup", "u", "var",
];

/// The text of a page: lines of its blocks, with the address of each link behind its text.
pub(super) fn text_of(html: &str) -> String {
    let input = BufferQueue::default();
    input.push_back(StrTendril::from(html));
    let tokenizer = Tokenizer::new(Page::default(), TokenizerOpts::default());
    // Only scripts that run would stop it before the end.
    let _ = tokenizer.feed(&input);
    tokenizer.end();
    let text = tokenizer.sink.text.into_inner();
    text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

#[derive(Default)]
struct Page {
    text: RefCell<String>,
    /// The skipped element that is open, and how many of its kind.
    skipped: RefCell<Option<(String, usize)>>,
    link: RefCell<Option<String>>,
    /// Whether white space came since the last word.
    space: Cell<bool>,
}

impl Page {
    fn words(&self, words: &str) {
        let mut text = self.text.borrow_mut();
        for c in words.chars() {
            if c.is_whitespace() {
                self.space.set(true);
                continue;
            }
            if self.space.replace(false) && !text.is_empty() && !text.ends_with('\n') {
                text.push(' ');
            }
            text.push(c);
        }
    }

    fn line(&self) {
        self.space.set(false);
        let mut text = self.text.borrow_mut();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
    }

    fn tag(&self, tag: &Tag) -> TokenSinkResult<()> {
        let name: &str = &tag.name;
        let starts = tag.kind == TagKind::StartTag;
        if self.skips(name, starts && !tag.self_closing) {
            return raw(name, starts);
        }
        if SKIPPED.contains(&name) {
            return raw(name, starts);
        }
        match (name, starts) {
            ("a", true) => {
                let href = tag.attrs.iter().find(|attribute| &*attribute.name.local == "href");
                *self.link.borrow_mut() = href.map(|href| href.value.trim().to_owned());
            }
            ("a", false) => {
                let link = self.link.borrow_mut().take();
                if let Some(link) = link.filter(|link| !link.is_empty() && !link.starts_with('#')) {
                    self.words(&format!(" <{link}>"));
                }
            }
            ("td" | "th", true) => self.words(" | "),
            ("li", true) => {
                self.line();
                self.words("- ");
            }
            ("td" | "th" | "li", false) => {}
            (name, _) if INLINE.contains(&name) => {}
            _ => self.line(),
        }
        raw(name, starts)
    }

    /// Whether the tag belongs to a skipped element.
    fn skips(&self, name: &str, opens: bool) -> bool {
        let mut skipped = self.skipped.borrow_mut();
        match &mut *skipped {
            Some((open, depth)) => {
                if name == open {
                    *depth = if opens { *depth + 1 } else { depth.saturating_sub(1) };
                }
                if *depth == 0 {
                    *skipped = None;
                }
                true
            }
            None if opens && SKIPPED.contains(&name) => {
                *skipped = Some((name.to_owned(), 1));
                true
            }
            None => false,
        }
    }
}

/// What follows the start of some elements has no tags.
fn raw(name: &str, starts: bool) -> TokenSinkResult<()> {
    match name {
        "script" if starts => TokenSinkResult::RawData(RawKind::ScriptData),
        "style" | "iframe" | "noframes" | "xmp" | "noembed" if starts => {
            TokenSinkResult::RawData(RawKind::Rawtext)
        }
        "title" | "textarea" if starts => TokenSinkResult::RawData(RawKind::Rcdata),
        _ => TokenSinkResult::Continue,
    }
}

impl TokenSink for Page {
    type Handle = ();

    fn process_token(&self, token: Token, _: u64) -> TokenSinkResult<()> {
        match token {
            Token::TagToken(tag) => return self.tag(&tag),
            Token::CharacterTokens(words) if self.skipped.borrow().is_none() => self.words(&words),
            _ => {}
        }
        TokenSinkResult::Continue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_becomes_lines_of_text() {
        let html = "<!doctype html><html><head><title>News &amp; more</title><style>p { }</style>
            <script>if (a < b) { '<p>code</p>' }</script></head><body><h1>One</h1><p>two
            <b>th</b>ree&nbsp;<a href='/x?a=1&amp;b=2'>four</a>.<br>five<ul><li>six<li>seven</ul>
            <table><tr><td>1<td>2</table><svg><text>no</text></svg><template><p>no</template><!-- no --></body>";
        assert_eq!(
            text_of(html),
            "News & more\nOne\ntwo three four </x?a=1&b=2>.\nfive\n- six\n- seven\n| 1 | 2"
        );
    }

    #[test]
    fn what_is_no_page_is_text_or_nothing() {
        for (html, text) in [
            ("", ""),
            ("plain <", "plain <"),
            ("<p", ""),
            ("a<b", "a"),
            ("<script>never closed", ""),
            ("</script></a></p>x", "x"),
            ("<svg/>x", "x"),
            ("<svg><svg></svg>no</svg>x", "x"),
            ("&#x41;&#0;&unknown;", "A\u{fffd}&unknown;"),
        ] {
            assert_eq!(text_of(html), text, "{html}");
        }
    }

    #[test]
    fn depth_costs_nothing() {
        for name in ["div", "blockquote", "table><tr><td", "b", "a href=x", "svg", "ul><li"] {
            let html = format!("<{name}>").repeat(100_000) + "end";
            let text = text_of(&html);
            assert!(name == "svg" || text.ends_with("end"), "{name}");
        }
    }
}
