use proptest::prelude::*;

use super::*;

fn history(entries: &[(u64, u64)]) -> TermHistory {
    TermHistory::new(entries.iter().copied().map(TermLsn::from).collect()).unwrap()
}

#[test]
fn refuses_what_is_no_history() {
    let build = |entries: &[(u64, u64)]| {
        TermHistory::new(entries.iter().copied().map(TermLsn::from).collect())
    };
    assert!(matches!(
        build(&[(1, 1), (1, 2)]),
        Err(TermHistoryError::TermNotRising { index: 1, .. })
    ));
    assert!(matches!(
        build(&[(1, 1), (2, 2), (3, 1)]),
        Err(TermHistoryError::LsnGoesBack { index: 2, .. })
    ));
    assert!(build(&[(1, 5), (2, 5)]).is_ok());
}

/// The worked example: proposer of term 5 against safekeepers in every situation.
#[test]
fn finds_the_common_point() {
    let proposer = history(&[(1, 100), (3, 500), (5, 900)]);
    let point = |entries: &[(u64, u64)], flush| {
        common_point(&proposer, &history(entries), Lsn(flush)).map(|lsn| lsn.0)
    };
    assert_eq!(point(&[(1, 100), (2, 400)], 450), Ok(400));
    assert_eq!(point(&[(1, 100), (3, 500)], 700), Ok(700));
    assert_eq!(point(&[(1, 100), (3, 500)], 950), Ok(900));
    assert_eq!(point(&[(1, 100), (3, 500), (5, 900)], 930), Ok(930));
    assert_eq!(point(&[], 0), Ok(100));
    assert_eq!(point(&[(2, 100)], 300), Ok(100), "no common term: from the beginning");
    // Adopted ahead of data: the safekeeper's entry for term 4 speaks of WAL that it does not hold.
    assert_eq!(point(&[(1, 100), (3, 500), (4, 800)], 700), Ok(700));
    assert!(matches!(
        point(&[(1, 100), (3, 501)], 700),
        Err(TermHistoryError::SameTermDifferentStart { term: Term(3), .. })
    ));
    assert_eq!(common_point(&history(&[]), &history(&[]), Lsn(0)), Err(TermHistoryError::Empty));
}

#[test]
fn an_empty_newest_term_beats_a_longer_old_one() {
    assert_eq!(history(&[(1, 100), (3, 500)]).last_log_term(Lsn(500)), Term(3));
    assert_eq!(history(&[(1, 100), (3, 500)]).last_log_term(Lsn(499)), Term(1));
    assert_eq!(history(&[]).last_log_term(Lsn(499)), Term(0));
}

prop_compose! {
    fn any_history()(steps in prop::collection::vec((1u64..3, 0u64..100), 0..6)) -> TermHistory {
        let (mut term, mut lsn) = (0, 100);
        let entries = steps.into_iter().map(|(term_step, lsn_step)| {
            term += term_step;
            lsn += lsn_step;
            TermLsn::from((term, lsn))
        });
        TermHistory::new(entries.collect()).unwrap()
    }
}

proptest! {
    /// Both sides know different parts of the acceptor's history and must agree all the same.
    #[test]
    fn common_point_needs_only_the_cut_history(
        proposer in any_history(), acceptor in any_history(), flush in 0u64..900,
    ) {
        let whole = common_point(&proposer, &acceptor, Lsn(flush));
        let cut = common_point(&proposer, &acceptor.up_to(Lsn(flush)), Lsn(flush));
        prop_assert_eq!(&whole, &cut);
        if let (Ok(point), Some(start)) = (whole, proposer.start_lsn()) {
            prop_assert!(point <= Lsn(flush).max(start));
        }
    }

    /// Whoever is elected with this donor finds the donor's log complete.
    #[test]
    fn a_donor_shares_its_whole_log(donor in any_history(), flush in 100u64..900) {
        let held = donor.up_to(Lsn(flush));
        prop_assume!(!held.is_empty());
        let mine = held.with(TermLsn::from((100, flush))).unwrap();
        prop_assert_eq!(common_point(&mine, &donor, Lsn(flush)), Ok(Lsn(flush)));
    }
}
