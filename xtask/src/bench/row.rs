//! Lines of a result.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::stats::{median, spread};

/// One line of a result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub case: String,
    pub ours: f64,
    #[serde(default)]
    pub reference: Option<f64>,
    #[serde(default)]
    pub reference_is: Option<String>,
    /// Above 1: ours is better.
    #[serde(default)]
    pub ratio: Option<f64>,
    pub unit: String,
    pub better: Better,
    /// Least and greatest of the rounds, where there are rounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ours_spread: Option<[f64; 2]>,
    /// The same of the reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_spread: Option<[f64; 2]>,
}

/// Which direction is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    Higher,
    Lower,
}

impl Row {
    /// A figure without a reference.
    pub fn new(case: &str, ours: f64, unit: &str, better: Better) -> Row {
        Row {
            case: case.to_owned(),
            ours,
            reference: None,
            reference_is: None,
            ratio: None,
            unit: unit.to_owned(),
            better,
            ours_spread: None,
            reference_spread: None,
        }
    }

    /// The median of rounds, with their spread.
    pub fn of_rounds(case: &str, rounds: &[f64], unit: &str, better: Better) -> Result<Row> {
        let ours = median(rounds).with_context(|| format!("{case}: no round"))?;
        Ok(Row { ours_spread: spread(rounds), ..Row::new(case, ours, unit, better) })
    }

    /// Sets the reference and the ratio.
    pub fn against(mut self, reference: f64, reference_is: &str) -> Row {
        self.ratio = match self.better {
            Better::Higher if reference > 0.0 => Some(self.ours / reference),
            Better::Lower if self.ours > 0.0 => Some(reference / self.ours),
            _ => None,
        };
        self.reference = Some(reference);
        self.reference_is = Some(reference_is.to_owned());
        self
    }

    /// Rounds of both sides, ours first in each pair, of which more is better: both figures are medians of their sides, and the
    /// ratio is the median of the pairs'. A machine that is slow for a while moves the medians of both sides, and no pair by much.
    pub fn of_pairs(
        case: &str,
        pairs: &[(f64, f64)],
        unit: &str,
        reference_is: &str,
    ) -> Result<Row> {
        let (ours, reference): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
        let ratios: Vec<f64> = pairs
            .iter()
            .filter(|(_, reference)| *reference > 0.0)
            .map(|(ours, reference)| ours / reference)
            .collect();
        let row = Row::of_rounds(case, &ours, unit, Better::Higher)?;
        Ok(Row { ratio: median(&ratios), ..row.against_rounds(&reference, reference_is)? })
    }

    /// Sets the reference to the median of rounds.
    pub fn against_rounds(self, rounds: &[f64], reference_is: &str) -> Result<Row> {
        let reference = median(rounds).with_context(|| format!("{}: no round", self.case))?;
        let row = self.against(reference, reference_is);
        Ok(Row { reference_spread: spread(rounds), ..row })
    }
}

/// Rows that a program printed, as one JSON array or one after the other.
pub fn parse(text: &str) -> serde_json::Result<Vec<Row>> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Printed {
        Row(Row),
        Rows(Vec<Row>),
    }
    let mut all = Vec::new();
    for printed in serde_json::Deserializer::from_str(text).into_iter() {
        match printed? {
            Printed::Row(row) => all.push(row),
            Printed::Rows(rows) => all.extend(rows),
        }
    }
    for row in &mut all {
        if let (Some(reference), Some(what), None) =
            (row.reference, row.reference_is.clone(), row.ratio)
        {
            *row = row.clone().against(reference, &what);
        }
    }
    Ok(all)
}

/// Rows as a table.
pub fn print(rows: &[Row]) {
    println!(
        "  {:<24} {:>12} {:>12} {:>8}  {:<10} reference",
        "case", "ours", "reference", "ratio", "unit"
    );
    let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
    for row in rows {
        println!(
            "  {:<24} {:>12.2} {:>12} {:>8}  {:<10} {}",
            row.case,
            row.ours,
            number(row.reference),
            number(row.ratio),
            row.unit,
            row.reference_is.as_deref().unwrap_or("-")
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_as_an_array_or_one_by_one() {
        let row = r#"{"case":"a","ours":2.0,"reference":4.0,"reference_is":"b","unit":"us","better":"lower"}"#;
        assert_eq!(parse(&format!("[{row},{row}]")).unwrap().len(), 2);
        let rows = parse(&format!("{row}\n{row}\n")).unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0].ratio, Some(2.0));
        assert!(parse("{}").is_err());
    }

    #[test]
    fn a_ratio_above_one_is_better_in_both_directions() {
        let higher = Row::of_rounds("a", &[5.0, 1.0, 4.0], "tps", Better::Higher).unwrap();
        let higher = higher.against_rounds(&[2.0, 2.0, 3.0], "stock").unwrap();
        assert_eq!((higher.ours, higher.reference, higher.ratio), (4.0, Some(2.0), Some(2.0)));
        assert_eq!(higher.ours_spread, Some([1.0, 5.0]));
        assert_eq!(higher.reference_spread, Some([2.0, 3.0]));
        let lower = Row::new("a", 1.0, "s", Better::Lower).against(3.0, "stock");
        assert_eq!(lower.ratio, Some(3.0));
        assert_eq!(Row::new("a", 1.0, "tps", Better::Higher).against(0.0, "b").ratio, None);
        assert!(Row::of_rounds("a", &[], "tps", Better::Higher).is_err());
    }

    #[test]
    fn the_ratio_of_pairs_is_not_that_of_medians() {
        // A machine that becomes twice as fast, and one stall.
        let pairs = [(9.0, 10.0), (9.0, 10.0), (18.0, 20.0), (18.0, 20.0), (1.0, 20.0)];
        let row = Row::of_pairs("a", &pairs, "tps", "stock").unwrap();
        assert_eq!((row.ours, row.reference, row.ratio), (9.0, Some(20.0), Some(0.9)));
        assert_eq!(Row::of_pairs("a", &[(1.0, 0.0)], "tps", "stock").unwrap().ratio, None);
        assert!(Row::of_pairs("a", &[], "tps", "stock").is_err());
    }

    #[test]
    fn rows_survive_their_file() {
        let row = Row::of_rounds("a", &[1.0, 2.0], "s", Better::Lower).unwrap();
        let text = serde_json::to_string(&row).unwrap();
        assert_eq!(parse(&text).unwrap(), [row]);
    }
}
