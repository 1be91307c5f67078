//! What a series of samples says.

/// The middle one; of none, nothing.
pub fn median(samples: &[f64]) -> Option<f64> {
    percentile(samples, 50)
}

/// The sample that `percent` of 100 lie below.
pub fn percentile(samples: &[f64], percent: usize) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (sorted.len() * percent / 100).min(sorted.len().checked_sub(1)?);
    sorted.get(index).copied()
}

/// Least and greatest.
pub fn spread(samples: &[f64]) -> Option<[f64; 2]> {
    let least = samples.iter().copied().min_by(f64::total_cmp)?;
    let greatest = samples.iter().copied().max_by(f64::total_cmp)?;
    Some([least, greatest])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_few_samples() {
        assert_eq!(median(&[]), None);
        assert_eq!(spread(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some([1.0, 3.0]));
        let hundred: Vec<f64> = (0..100).map(f64::from).collect();
        assert_eq!(percentile(&hundred, 99), Some(99.0));
        assert_eq!(percentile(&hundred, 100), Some(99.0));
        assert_eq!(percentile(&[7.0], 0), Some(7.0));
    }
}
