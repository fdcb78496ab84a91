//! From a descent to whom to ask.

use super::{Descent, Graph, Hop, Node};
use crate::policy::{self, Candidate, Choice, PolicyError, PolicySettings, Reason};

/// Whom to ask, and along which routers each is reached.
#[derive(Debug, Clone, PartialEq)]
pub struct Referral {
    /// Workers only.
    pub choice: Choice,
    /// Of each of `choice.order`.
    paths: Vec<Vec<String>>,
}

impl Referral {
    /// From the top router's choice to the expert: one name where no router stands between. An expert that was brought
    /// in beside the first (its strong or weak counterpart) is reached as the first is.
    pub fn path(&self, expert: &str) -> Vec<String> {
        if let Some(path) = self
            .paths
            .iter()
            .find(|path| path.last().is_some_and(|last| last == expert))
        {
            return path.clone();
        }
        let first = self.paths.first().map_or(&[][..], Vec::as_slice);
        let above = first.split_last().map_or(&[][..], |(_, above)| above);
        above.iter().cloned().chain([expert.to_owned()]).collect()
    }
}

impl Graph {
    /// From a descent to whom to ask; see [`policy::decide`], which decides at each level. `settings.min_confidence` is
    /// the top router's. `requested` is the worker that the caller named, if any.
    ///
    /// # Errors
    /// As [`policy::decide`].
    pub fn decide(
        &self,
        descent: Option<&Descent>,
        requested: Option<&str>,
        candidates: &[Candidate],
        settings: &PolicySettings,
    ) -> Result<Referral, PolicyError> {
        let mut all = candidates.to_vec();
        // Whether a router's experts can be asked shows when it is replaced by them.
        all.extend(self.nodes.keys().map(|name| Candidate {
            id: name.clone(),
            is_ready: true,
            is_external: false,
        }));
        let top = policy::decide(descent.map(|descent| &descent.routing), requested, &all, settings)?;
        let mut expansion = Expansion {
            graph: self,
            candidates: &all,
            settings,
            choice: Choice {
                order: Vec::new(),
                reasons: top.reasons,
                abstained: top.abstained,
            },
            paths: Vec::new(),
        };
        let below = descent.map_or(&[][..], |descent| &descent.below);
        expansion.add(top.order, below, &[]);
        if expansion.choice.order.is_empty() {
            let anybody = policy::decide(None, None, candidates, settings)?;
            expansion.add(anybody.order, &[], &[]);
        }
        Ok(Referral {
            choice: expansion.choice,
            paths: expansion.paths,
        })
    }
}

/// Replaces routers in an order by the workers that they would ask.
struct Expansion<'a> {
    graph: &'a Graph,
    candidates: &'a [Candidate],
    settings: &'a PolicySettings,
    choice: Choice,
    paths: Vec<Vec<String>>,
}

impl Expansion<'_> {
    /// Adds `names`, reached along `above`. Of a router that read the query (the first of `below`) its own choice follows,
    /// of any other the stand-in.
    fn add(&mut self, names: Vec<String>, below: &[Hop], above: &[String]) {
        for name in names {
            let path: Vec<String> = above.iter().cloned().chain([name.clone()]).collect();
            let Some(node) = self.graph.nodes.get(&name) else {
                if !self.choice.order.contains(&name) {
                    self.choice.order.push(name);
                    self.paths.push(path);
                }
                continue;
            };
            let read = below.split_first().filter(|(hop, _)| hop.node == name);
            let routing = read.map(|(hop, _)| &hop.routing);
            let inner = policy::decide(
                routing,
                None,
                &self.own(node, read.is_some()),
                &PolicySettings {
                    generalist: node.otherwise.clone(),
                    min_confidence: node.min_confidence,
                    allow_external: self.settings.allow_external,
                },
            );
            let rest = read.map_or(&[][..], |(_, rest)| rest);
            match inner {
                Ok(inner) => {
                    if read.is_some() {
                        self.choice.abstained |= inner.abstained;
                        self.remark(inner.reasons);
                    }
                    self.add(inner.order, rest, &path);
                }
                Err(_) if read.is_some() => self.remark(vec![Reason::Unhealthy]),
                Err(_) => {}
            }
        }
    }

    /// What a router may choose from: its own experts, if it read the query, and its stand-in.
    fn own(&self, node: &Node, has_read: bool) -> Vec<Candidate> {
        let is_own = |id: &String| *id == node.otherwise || (has_read && node.decider.experts().contains(id));
        self.candidates
            .iter()
            .filter(|candidate| is_own(&candidate.id))
            .cloned()
            .collect()
    }

    fn remark(&mut self, reasons: Vec<Reason>) {
        for reason in reasons {
            if !self.choice.reasons.contains(&reason) {
                self.choice.reasons.push(reason);
            }
        }
    }
}
