//! An evaluation as text.

use super::{Evaluation, ExpertFigures};
use std::fmt;

impl fmt::Display for Evaluation {
    /// The report as text: the figures, a table by expert and the confusion.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "n                   {}", self.n)?;
        for (name, value) in [
            ("accuracy", self.accuracy),
            ("macro_f1", self.macro_f1),
            ("ece", self.ece),
            ("nll", self.nll),
            ("coverage", self.coverage),
            ("selective_accuracy", self.selective_accuracy),
            ("with_second", self.accuracy_with_second),
            ("accuracy_at_60", self.accuracy_at_60),
            ("aurc", self.aurc),
        ] {
            writeln!(f, "{name:<19} {value:.4}")?;
        }
        if let Some(scope) = &self.out_of_scope {
            writeln!(
                f,
                "ood_auroc           {:.4} (by confidence {:.4}; {} rows out of scope, {:.4} abstained on)",
                scope.ood_auroc, scope.ood_auroc_confidence, scope.n, scope.abstained
            )?;
        }
        if self.latency_p95_us > 0 {
            let ms = |us: u64| us as f64 / 1000.0;
            writeln!(
                f,
                "latency             p50 {:.1} ms, p95 {:.1} ms",
                ms(self.latency_p50_us),
                ms(self.latency_p95_us)
            )?;
        }
        let width = self
            .experts
            .iter()
            .map(|figures| figures.expert.len())
            .max()
            .unwrap_or(0)
            .max(6);
        writeln!(f, "\n{:<width$}  precision  recall      f1  support", "expert")?;
        for figures in self
            .experts
            .iter()
            .filter(|figures| figures.support > 0 || figures.precision > 0.0)
        {
            let ExpertFigures {
                expert,
                precision,
                recall,
                f1,
                support,
            } = figures;
            writeln!(
                f,
                "{expert:<width$}  {precision:>9.3}  {recall:>6.3}  {f1:>6.3}  {support:>7}"
            )?;
        }
        writeln!(f, "\nright expert by row, chosen by column")?;
        write!(f, "{:<width$}", "")?;
        for (i, _) in self.confusion.experts.iter().enumerate() {
            write!(f, " {:>5}", format!("[{}]", i + 1))?;
        }
        writeln!(f)?;
        for (i, (expert, counts)) in self
            .confusion
            .experts
            .iter()
            .zip(&self.confusion.counts)
            .enumerate()
        {
            write!(f, "{expert:<width$}")?;
            for count in counts {
                write!(f, " {count:>5}")?;
            }
            writeln!(f, "  [{}]", i + 1)?;
        }
        Ok(())
    }
}
