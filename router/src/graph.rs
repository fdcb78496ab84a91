//! A graph of experts: a node can be a router of its own (Octopus v4, arXiv 2404.19296: master nodes and workers).
//!
//! The top router reads every query. Where its likeliest expert is a router, that one reads the query too, and so on, until
//! a worker or a router that abstains: that is the *descent*, which runs on the compute thread and is what the
//! decision cache keeps. Whom to ask follows from it by [`Graph::decide`] (`order`), a pure function of the descent and the
//! experts' state: [`crate::policy::decide`] at each level, where a router stands for the experts that it would
//! ask, and the node's `otherwise` for the generalist. A router is never asked for text.
//!
//! The confidence of a descent is the product of the confidences along it: each router's is the probability that it is
//! right where the one above it was.

mod order;

pub use order::Referral;

use crate::functional::{Router, Routing};
use crate::policy::abstains;
use crate::{RouterError, digest};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Whoever turns queries into routings, blocking.
pub trait Decider: Send + Sync + 'static {
    /// Names of the experts it knows.
    fn experts(&self) -> &[String];
    /// Identifies its trained files.
    fn version(&self) -> &str;
    /// Routes a batch in one go; as many results as queries.
    ///
    /// # Errors
    /// If any of the queries cannot be routed.
    fn route(&self, queries: &[&str]) -> Result<Vec<Routing>, RouterError>;
    /// The query as this router would put it to the expert, if it is of a kind that writes that.
    ///
    /// # Errors
    /// If the arithmetic fails.
    fn argument(&self, _query: &str) -> Result<Option<String>, RouterError> {
        Ok(None)
    }
}

impl Decider for Router {
    fn experts(&self) -> &[String] {
        self.experts()
    }
    fn version(&self) -> &str {
        self.version()
    }
    fn route(&self, queries: &[&str]) -> Result<Vec<Routing>, RouterError> {
        self.route(queries)
    }
}

/// A node that is a router of its own.
#[derive(Clone)]
pub struct Node {
    /// The expert's name under which others refer to it.
    pub name: String,
    /// The router.
    pub decider: Arc<dyn Decider>,
    /// Who answers where it abstains: a worker.
    pub otherwise: String,
    /// Overrides its own threshold of the confidence, 0 to 1.
    pub min_confidence: Option<f32>,
}

/// Why routers make no graph. Paths begin at the top.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// A router is below itself.
    #[error(
        "the routers run in a circle, {}: take {} out of the router of {}",
        path.join(" → "), path.last().map_or("", String::as_str), path.iter().rev().nth(1).map_or("", String::as_str)
    )]
    Cycle {
        /// Ends with the name that it holds already.
        path: Vec<String>,
    },
    /// More routers in a row than are allowed.
    #[error("{} passes {} routers, policy.max_depth is {most}: raise it, or refer to fewer", path.join(" → "), path.len() + 1)]
    TooDeep {
        /// The routers below the top one.
        path: Vec<String>,
        /// Routers allowed, the top one among them.
        most: usize,
    },
    /// A router stands in for a router.
    #[error("experts.{node}.router.otherwise: {otherwise} is a router itself: name an expert that answers")]
    Otherwise {
        /// The node.
        node: String,
        /// Its stand-in.
        otherwise: String,
    },
}

/// The routers, bound together; free of circles.
pub struct Graph {
    top: Arc<dyn Decider>,
    min_confidence: Option<f32>,
    nodes: BTreeMap<String, Node>,
    version: String,
}

/// What the routers think of one query, from the top down.
#[derive(Debug, Clone, PartialEq)]
pub struct Descent {
    /// The top router's word.
    pub routing: Routing,
    /// The routers that it was referred to, in order.
    pub below: Vec<Hop>,
}

/// A router below the top one.
#[derive(Debug, Clone, PartialEq)]
pub struct Hop {
    /// Its name.
    pub node: String,
    /// Its word.
    pub routing: Routing,
}

impl Descent {
    /// Product of the confidences along the way, 0 to 1.
    pub fn confidence(&self) -> f32 {
        let below = self.below.iter().map(|hop| hop.routing.confidence);
        self.routing.confidence * below.product::<f32>()
    }

    /// Routers that read the query.
    pub fn depth(&self) -> usize {
        1 + self.below.len()
    }

    /// The last router's word.
    pub fn last(&self) -> &Routing {
        self.below.last().map_or(&self.routing, |hop| &hop.routing)
    }

    /// The likeliest names, from the top's to the last router's.
    pub fn path(&self) -> Vec<String> {
        let all = [&self.routing]
            .into_iter()
            .chain(self.below.iter().map(|hop| &hop.routing));
        all.map(|routing| routing.expert().to_owned()).collect()
    }
}

impl From<Routing> for Descent {
    fn from(routing: Routing) -> Self {
        Self {
            routing,
            below: Vec::new(),
        }
    }
}

impl Graph {
    /// One router, all of whose experts are workers.
    pub fn single(top: Arc<dyn Decider>) -> Self {
        let version = top.version().to_owned();
        Self {
            top,
            min_confidence: None,
            nodes: BTreeMap::new(),
            version,
        }
    }

    /// Binds routers together. `min_confidence` overrides the top router's own threshold; at most `most` routers are
    /// passed by one query, the top one among them.
    ///
    /// # Errors
    /// [`GraphError`] for a circle, a chain that is too long and a stand-in that is a router.
    pub fn new(
        top: Arc<dyn Decider>,
        min_confidence: Option<f32>,
        nodes: Vec<Node>,
        most: usize,
    ) -> Result<Self, GraphError> {
        let nodes: BTreeMap<String, Node> = nodes.into_iter().map(|node| (node.name.clone(), node)).collect();
        if let Some(node) = nodes.values().find(|node| nodes.contains_key(&node.otherwise)) {
            return Err(GraphError::Otherwise {
                node: node.name.clone(),
                otherwise: node.otherwise.clone(),
            });
        }
        let versions: Vec<&[u8]> = [top.version().as_bytes()]
            .into_iter()
            .chain(
                nodes
                    .values()
                    .flat_map(|node| [node.name.as_bytes(), node.decider.version().as_bytes()]),
            )
            .collect();
        let version = match nodes.is_empty() {
            true => top.version().to_owned(),
            false => digest::hex(&digest::parts(&versions)),
        };
        let graph = Self {
            top,
            min_confidence,
            nodes,
            version,
        };
        graph.check(graph.top.experts(), &mut Vec::new(), most)?;
        // Routers that nothing refers to are the caller's to tell, but a circle among them is one all the same.
        for node in graph.nodes.values() {
            graph.check(node.decider.experts(), &mut vec![node.name.clone()], usize::MAX)?;
        }
        Ok(graph)
    }

    fn check(&self, experts: &[String], path: &mut Vec<String>, most: usize) -> Result<(), GraphError> {
        if path.len() >= most {
            return Err(GraphError::TooDeep {
                path: path.clone(),
                most,
            });
        }
        for node in experts.iter().filter_map(|name| self.nodes.get(name)) {
            let is_above = path.contains(&node.name);
            path.push(node.name.clone());
            if is_above {
                return Err(GraphError::Cycle { path: path.clone() });
            }
            self.check(node.decider.experts(), path, most)?;
            path.pop();
        }
        Ok(())
    }

    /// Identifies all trained files.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The routers below the top one.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// The node of that name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// Every name that a query can be referred to from the top, routers and their stand-ins among them, with the first
    /// path to it.
    pub fn reached(&self) -> BTreeMap<String, Vec<String>> {
        let mut found = BTreeMap::new();
        self.reach(self.top.experts(), &mut Vec::new(), &mut found);
        found
    }

    /// The workers that router `name` refers to, at whatever depth.
    pub fn workers_below(&self, name: &str) -> BTreeSet<String> {
        let mut found = BTreeMap::new();
        if let Some(node) = self.nodes.get(name) {
            found.insert(node.otherwise.clone(), Vec::new());
            self.reach(node.decider.experts(), &mut Vec::new(), &mut found);
        }
        let workers = found.into_keys().filter(|name| !self.nodes.contains_key(name));
        workers.collect()
    }

    fn reach(&self, experts: &[String], path: &mut Vec<String>, found: &mut BTreeMap<String, Vec<String>>) {
        for name in experts {
            path.push(name.clone());
            found.entry(name.clone()).or_insert_with(|| path.clone());
            if let Some(node) = self.nodes.get(name) {
                path.push(node.otherwise.clone());
                found
                    .entry(node.otherwise.clone())
                    .or_insert_with(|| path.clone());
                path.pop();
                self.reach(node.decider.experts(), path, found);
            }
            path.pop();
        }
    }

    /// The query as the top router would put it to the expert; see [`Decider::argument`].
    ///
    /// # Errors
    /// If the arithmetic fails.
    pub fn argument(&self, query: &str) -> Result<Option<String>, RouterError> {
        self.top.argument(query)
    }

    /// Routes a batch: one pass of the top router, and one of each router below that any of the queries is referred to.
    /// Blocking compute.
    ///
    /// # Errors
    /// If a router fails, or gives another number of routings than it was given queries.
    pub fn route(&self, queries: &[&str]) -> Result<Vec<Descent>, RouterError> {
        let top = complete(self.top.route(queries)?, queries.len())?;
        let mut descents: Vec<Descent> = top.into_iter().map(Descent::from).collect();
        loop {
            let mut referred: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
            for (index, descent) in descents.iter().enumerate() {
                if let Some(node) = self.next(descent) {
                    referred.entry(&node.name).or_default().push(index);
                }
            }
            if referred.is_empty() {
                return Ok(descents);
            }
            for (name, indices) in referred {
                let Some(node) = self.nodes.get(name) else {
                    continue;
                };
                let texts: Vec<&str> = indices
                    .iter()
                    .filter_map(|index| queries.get(*index).copied())
                    .collect();
                let routings = complete(node.decider.route(&texts)?, texts.len())?;
                for (index, routing) in indices.into_iter().zip(routings) {
                    if let Some(descent) = descents.get_mut(index) {
                        descent.below.push(Hop {
                            node: name.to_owned(),
                            routing,
                        });
                    }
                }
            }
        }
    }

    /// The router that the last one of a descent refers to.
    fn next(&self, descent: &Descent) -> Option<&Node> {
        let least = match descent.below.last() {
            Some(hop) => self.nodes.get(&hop.node)?.min_confidence,
            None => self.min_confidence,
        };
        let last = descent.last();
        self.nodes.get(last.expert()).filter(|_| !abstains(last, least))
    }
}

fn complete(routings: Vec<Routing>, wanted: usize) -> Result<Vec<Routing>, RouterError> {
    let is_complete = routings.len() == wanted && routings.iter().all(|r| !r.probabilities.is_empty());
    if is_complete {
        return Ok(routings);
    }
    Err(RouterError::Invalid {
        field: "routings",
        value: format!("{} for {wanted} queries", routings.len()),
        fix: "a router gives one for each query, with a probability for at least one expert".to_owned(),
    })
}

#[cfg(test)]
mod tests;
