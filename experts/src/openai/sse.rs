//! Server-sent events from bytes, cut wherever the network cut them.
//!
//! Follows the WHATWG event-stream grammar (any line ending, comments, several `data` lines, byte
//! order mark) with two allowances for real servers: an event at the very end needs no blank line,
//! and llama.cpp's `error:` field is read as an event called `error`.

/// Longest line or event in bytes; a server that sends more makes no sense.
const MAX_EVENT_BYTES: usize = 1 << 20;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Event {
    /// Whether its name is `error`.
    pub(super) is_error: bool,
    /// Its data lines, joined by line feeds.
    pub(super) data: String,
}

/// A line or event exceeded the bound.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct EventTooLong;

/// Collects bytes into events.
#[derive(Debug, Default)]
pub(super) struct Parser {
    line: Vec<u8>,
    /// The last byte was a carriage return, so a line feed next belongs to it.
    after_return: bool,
    is_past_first_line: bool,
    event: Event,
    has_data: bool,
}

impl Parser {
    /// Takes more bytes; completed events are added to `events`, also those before an error.
    pub(super) fn feed(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Result<(), EventTooLong> {
        for &byte in bytes {
            let is_rest_of_ending = byte == b'\n' && std::mem::take(&mut self.after_return);
            self.after_return = byte == b'\r';
            match byte {
                b'\n' if is_rest_of_ending => {}
                b'\n' | b'\r' => self.end_line(events),
                _ if self.line.len() + self.event.data.len() >= MAX_EVENT_BYTES => return Err(EventTooLong),
                _ => self.line.push(byte),
            }
        }
        Ok(())
    }

    /// The bytes are over: completes what is left.
    pub(super) fn finish(&mut self, events: &mut Vec<Event>) {
        if !self.line.is_empty() {
            self.end_line(events);
        }
        self.dispatch(events);
    }

    fn end_line(&mut self, events: &mut Vec<Event>) {
        let bytes = std::mem::take(&mut self.line);
        let mut line = String::from_utf8_lossy(&bytes).into_owned();
        if !std::mem::replace(&mut self.is_past_first_line, true) && line.starts_with('\u{feff}') {
            line.remove(0);
        }
        if line.is_empty() {
            return self.dispatch(events);
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => self.add(value),
            "event" => self.event.is_error = value == "error",
            "error" => {
                self.event.is_error = true;
                self.add(value);
            }
            _ => {}
        }
    }

    fn add(&mut self, value: &str) {
        if std::mem::replace(&mut self.has_data, true) {
            self.event.data.push('\n');
        }
        self.event.data.push_str(value);
    }

    fn dispatch(&mut self, events: &mut Vec<Event>) {
        let event = std::mem::take(&mut self.event);
        if std::mem::take(&mut self.has_data) {
            events.push(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Event> {
        let (mut parser, mut events) = (Parser::default(), Vec::new());
        for piece in pieces {
            parser.feed(piece, &mut events).unwrap();
        }
        parser.finish(&mut events);
        events
    }

    fn data(text: &str) -> Vec<String> {
        parse([text.as_bytes()])
            .into_iter()
            .map(|event| event.data)
            .collect()
    }

    #[test]
    fn grammar() {
        assert_eq!(
            data("data: a\n\ndata:b\r\n\r\ndata: c\r\rdata: d"),
            ["a", "b", "c", "d"]
        );
        assert_eq!(data(": ping\n\ndata: a\n: ping\ndata: b\n\n"), ["a\nb"]);
        assert_eq!(
            data("\u{feff}data:  two spaces\n\nid: 7\nretry: 5\n\ndata\n\n"),
            [" two spaces", ""]
        );
    }

    #[test]
    fn error_events() {
        let error = Event {
            is_error: true,
            data: "{}".into(),
        };
        assert_eq!(
            parse([&b"event: error\ndata: {}\n\n"[..]]),
            std::slice::from_ref(&error)
        );
        assert_eq!(parse([&b"error: {}\n\n"[..]]), [error]);
        assert!(!parse([&b"event: error\n\nevent: message\ndata: {}\n\n"[..]])[0].is_error);
    }

    #[test]
    fn endless_line_is_refused() {
        let (mut parser, mut events) = (Parser::default(), Vec::new());
        let piece = vec![b'x'; MAX_EVENT_BYTES];
        assert_eq!(parser.feed(&piece, &mut events), Ok(()));
        assert_eq!(parser.feed(b"y", &mut events), Err(EventTooLong));
        let mut parser = Parser::default();
        let lines = b"data: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n".repeat(40_000);
        assert_eq!(
            parser.feed(&lines, &mut events),
            Err(EventTooLong),
            "many lines are one event"
        );
    }

    fn piece() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("\n".to_owned()),
            Just("\r\n".to_owned()),
            Just("\r".to_owned()),
            Just("\n\n".to_owned()),
            Just("data: {\"a\":\"ß🩺\"}".to_owned()),
            Just("data:".to_owned()),
            Just("event: error".to_owned()),
            Just("error: boom".to_owned()),
            Just(": ping".to_owned()),
            Just("\u{feff}".to_owned()),
            "\\PC{0,6}",
        ]
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same(
            text in proptest::collection::vec(piece(), 0..30),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let bytes = text.concat().into_bytes();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]);
            prop_assert_eq!(parse(pieces), parse([&bytes[..]]));
            prop_assert_eq!(parse(bytes.chunks(1)), parse([&bytes[..]]));
        }
    }
}
