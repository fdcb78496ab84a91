//! The W3C trace id that a query carries or is given (<https://www.w3.org/TR/trace-context/>).

use uuid::Uuid;

/// The trace id of a `traceparent` header, if it is a valid one.
pub(super) fn parse_traceparent(header: &str) -> Option<String> {
    let mut parts = header.trim().split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_hex = |text: &str, digits: usize| {
        text.len() == digits
            && text
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let is_known = is_hex(version, 2) && version != "ff" && (version != "00" || parts.next().is_none());
    let is_valid = is_known && is_hex(trace, 32) && is_hex(parent, 16) && is_hex(flags, 2);
    let is_zero = |text: &str| text.bytes().all(|b| b == b'0');
    (is_valid && !is_zero(trace) && !is_zero(parent)).then(|| trace.to_owned())
}

/// A new trace id: 32 hex digits, random.
pub(super) fn new_trace_id() -> String {
    Uuid::new_v4().simple().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_valid_headers_are_honoured() {
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(
            parse_traceparent(&format!("00-{id}-00f067aa0ba902b7-01")).as_deref(),
            Some(id)
        );
        assert_eq!(
            parse_traceparent(&format!("01-{id}-00f067aa0ba902b7-01-later")).as_deref(),
            Some(id)
        );
        for bad in [
            String::new(),
            format!("ff-{id}-00f067aa0ba902b7-01"),
            format!("00-{id}-00f067aa0ba902b7-01-more"),
            format!("00-{}-00f067aa0ba902b7-01", id.to_uppercase()),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{id}-0000000000000000-01"),
            format!("00-{id}-00f067aa0ba902b7"),
        ] {
            assert_eq!(parse_traceparent(&bad), None, "{bad}");
        }
        assert_eq!(new_trace_id().len(), 32);
    }

    proptest! {
        #[test]
        fn no_header_panics(text in ".*") {
            let _any = parse_traceparent(&text);
        }
    }
}
