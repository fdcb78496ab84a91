use super::*;
use proptest::prelude::*;
use std::io::Write;

fn file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    (directory, path)
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

const TWO: &str = "{\"id\":\"a\",\"query\":\"dose?\",\"expert\":\"pharmacy\",\"voice\":\"nurse\",\"focus\":\"aspirin\"}\n\n{\"id\":7,\"query\":\"rash\",\"expert\":\"skin\",\"second\":\"general\"}";

#[test]
fn reads_plain_and_gzip_alike_and_keeps_optional_keys() {
    let (_plain, plain) = file("rows.jsonl", TWO.as_bytes());
    let (_packed, packed) = file("rows.jsonl.gz", &gzip(TWO));
    let rows = &read_files(&[plain]).unwrap()[0].rows;
    assert_eq!(rows, &read_files(&[packed]).unwrap()[0].rows);
    assert_eq!(rows.len(), 2);
    assert_eq!(
        (rows[0].focus.as_deref(), rows[0].second.as_deref()),
        (Some("aspirin"), None)
    );
    assert_eq!(
        (rows[1].id.as_str(), rows[1].second.as_deref()),
        ("7", Some("general"))
    );
}

#[test]
fn errors_name_the_file_and_the_line() {
    for (text, line, says) in [
        (
            "{\"id\":\"a\",\"query\":\"q\",\"expert\":\"e\"}\n{\"id\":\"b\",\"query\":\"q\"}",
            2,
            "expert",
        ),
        (
            "{\"id\":\"a\",\"query\":\"  \",\"expert\":\"e\"}",
            1,
            "query is empty",
        ),
        ("\n\nnot json", 3, "expected"),
        (
            "{\"id\":\"a\",\"query\":\"q\",\"expert\":\" e\"}",
            1,
            "spaces around",
        ),
        (
            "{\"id\":[],\"query\":\"q\",\"expert\":\"e\"}",
            1,
            "string or an integer",
        ),
        (
            "{\"id\":\"a\",\"query\":\"q\",\"expert\":\"e\"}\n{\"id\":\"a\",\"query\":\" q\",\"expert\":\"f\"}",
            2,
            "came before",
        ),
    ] {
        let (_directory, path) = file("rows.jsonl", text.as_bytes());
        match read_files(std::slice::from_ref(&path)) {
            Err(RouterError::BadRow {
                path: named,
                line: at,
                detail,
            }) => {
                assert_eq!((named, at), (path, line));
                assert!(detail.contains(says), "{detail}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn invalid_utf8_and_endless_lines_are_refused() {
    let (_a, path) = file(
        "rows.jsonl",
        b"{\"id\":\"a\",\"query\":\"\xff\",\"expert\":\"e\"}",
    );
    assert!(read_files(&[path]).unwrap_err().to_string().contains("UTF-8"));
    let (_b, path) = file("rows.jsonl", &vec![b'x'; MAX_LINE_BYTES + 2]);
    assert!(
        read_files(&[path])
            .unwrap_err()
            .to_string()
            .contains("longer than")
    );
}

#[test]
fn a_truncated_gzip_an_empty_and_a_missing_file_are_errors() {
    let packed = gzip(&TWO.repeat(50).replace("\"}{", "\"}\n{"));
    let (_a, path) = file("rows.jsonl.gz", &packed[..packed.len() - 9]);
    let error = Reader::<Query>::open(&path)
        .unwrap()
        .find_map(Result::err)
        .unwrap();
    assert!(
        matches!(&error, RouterError::BadFile { detail, .. } if detail.contains("truncated")),
        "{error}"
    );
    let (_b, path) = file("rows.jsonl", b"\n");
    assert!(read_files(&[path]).unwrap_err().to_string().contains("no rows"));
    assert!(matches!(
        read_files(&["/nonexistent/rows".into()]),
        Err(RouterError::Io { .. })
    ));
}

#[test]
fn unlabelled_queries_need_no_expert() {
    let (_directory, path) = file(
        "q.jsonl",
        b"{\"id\":\"a\",\"query\":\"q\"}\r\n{\"id\":\"b\",\"query\":\"r\",\"expert\":\"e\"}",
    );
    let ids: Vec<String> = Reader::<Query>::open(&path)
        .unwrap()
        .map(|row| row.unwrap().id)
        .collect();
    assert_eq!(ids, ["a", "b"]);
}

#[test]
fn a_label_without_token_is_named() {
    let (_directory, path) = file("rows.jsonl", TWO.as_bytes());
    let files = read_files(&[path]).unwrap();
    let error = check_labels(&files[0], &["pharmacy".into(), "general".into()])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("\"skin\"") && error.contains("pharmacy, general"),
        "{error}"
    );
    check_labels(&files[0], &["pharmacy".into(), "skin".into()]).unwrap();
}

#[test]
fn normalise_collapses_space_and_composes_but_keeps_case() {
    assert_eq!(normalise("  Does\tMS \n\u{a0}hurt? "), "Does MS hurt?");
    assert_eq!(normalise("cafe\u{301}"), "caf\u{e9}");
    assert_eq!(normalise(" \n"), "");
}

proptest! {
    #[test]
    fn normalise_is_idempotent_and_blind_to_surrounding_space(text in "\\PC{0,40}", pad in "[ \t\n]{0,3}") {
        let once = normalise(&text);
        prop_assert_eq!(normalise(&once), once.clone());
        prop_assert_eq!(normalise(&format!("{pad}{text}{pad}")), once);
    }

    #[test]
    fn reading_any_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let (_directory, path) = file("any", &bytes);
        let _ = Reader::<Row>::open(&path).map(Iterator::count);
    }
}

/// Writes rows as lines and reads them through `fields`.
fn read_as(lines: &[&str], fields: &Fields) -> Result<Vec<DataFile>, RouterError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), lines.join("\n")).unwrap();
    read_files_as(&[file.path().to_owned()], fields)
}

fn mapping(text: &str) -> Result<LabelMap, RouterError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    LabelMap::open(file.path())
}

#[test]
fn other_names_and_finer_labels_become_queries_and_experts() {
    let fields = Fields {
        query: "prompt".to_owned(),
        label: "subject".to_owned(),
        labels: Some(
            mapping(r#"{"labels": {"virology": "health", "anatomy": "health", "algebra": "math"}}"#).unwrap(),
        ),
    };
    let virus = r#"{"id": 1, "prompt": "What is a virus?", "subject": "virology", "expert": "not this"}"#;
    let group = r#"{"id": 2, "prompt": "What is a group?", "subject": "algebra"}"#;
    let rows = read_as(&[virus, group], &fields).unwrap().remove(0).rows;
    let found: Vec<_> = rows
        .iter()
        .map(|row| (row.query.as_str(), row.expert.as_str()))
        .collect();
    assert_eq!(
        found,
        [("What is a virus?", "health"), ("What is a group?", "math")]
    );

    let again = r#"{"id": 3, "prompt": "What is  a virus?", "subject": "anatomy"}"#;
    assert_eq!(read_as(&[virus, again], &fields).unwrap()[0].rows.len(), 2);
    for (bad, words) in [
        (
            r#"{"id": 3, "prompt": "What is a virus?", "subject": "algebra"}"#,
            r#""3" maps to "math", but row "1""#,
        ),
        (
            r#"{"id": 3, "prompt": "Why?", "subject": "law"}"#,
            r#"subject is "law""#,
        ),
        (
            r#"{"id": 3, "query": "Why?", "subject": "law"}"#,
            r#"no field "prompt""#,
        ),
        (
            r#"{"id": 3, "prompt": "Why?"}"#,
            r#"read from the field "subject""#,
        ),
        (
            r#"{"id": 3, "prompt": 7, "subject": "algebra"}"#,
            "expected a string",
        ),
        ("[]", "expected a map"),
    ] {
        let error = read_as(&[virus, bad], &fields).unwrap_err().to_string();
        assert!(
            error.contains(words) && error.contains("line 2"),
            "{bad}: {error}"
        );
    }
}

#[test]
fn the_shipped_mapping_sends_57_subjects_to_17_categories() {
    let map = LabelMap::open("data/mmlu_octopus_v4.json".as_ref()).unwrap();
    let experts: HashSet<&str> = map.experts().collect();
    assert_eq!((map.experts().count(), experts.len()), (57, 17));
}

#[test]
fn unusable_mappings_are_told() {
    for (text, words) in [
        ("{}", "missing field `labels`"),
        (r#"{"labels": {}}"#, "labels is empty"),
        (r#"{"labels": {"a": " "}}"#, r#"label "a" has no expert"#),
        (r#"{"labels": {"a": "b"}, "lables": {}}"#, "unknown field"),
    ] {
        let error = mapping(text).unwrap_err().to_string();
        assert!(error.contains(words), "{text}: {error}");
    }
}
