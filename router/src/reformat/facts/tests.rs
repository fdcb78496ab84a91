use super::*;
use proptest::prelude::*;

fn difference(original: &str, wording: &str) -> Option<Outcome> {
    compare(original, wording)
        .err()
        .map(|difference| difference.outcome())
}

#[test]
fn good_wordings_pass() {
    for (original, wording) in [
        ("82M s/p hip fx", "An 82-year-old man has had a hip fracture."),
        (
            "33 F, temp 101 F",
            "A 33-year-old woman has a temperature of 101 Fahrenheit.",
        ),
        ("morphine 5mg q4h ok?", "Is morphine 5 mg every 4 hours safe?"),
        ("gent 5 mg/kg od", "How is gent 5 mg per kg od monitored?"),
        ("no fever, no rash", "There is no fever and no rash."),
        (
            "pain L knee x3 days",
            "Pain in the left knee for 3 days. What is the cause?",
        ),
        (
            "BP 90/50, HR 120",
            "The blood pressure is 90/50 and the heart rate 120.",
        ),
        ("takes it bd", "It is taken twice a day."),
        ("two tabs of metformin", "2 tablets of metformin"),
        ("NKDA, T2DM", "No known drug allergies, type 2 diabetes mellitus."),
        ("10,000 units heparin", "10000 units of heparin"),
        ("SBP <140 or >160", "SBP below 140 or above 160"),
        (
            "possible DVT, BP 90/50",
            "A possible deep vein thrombosis, blood pressure 90/50",
        ),
        ("5.0 mg of it, 05 days", "5 mg of it for 5 days"),
        ("L knee and R ankle", "left knee and right ankle"),
        ("hasn't eaten", "The patient has not eaten."),
    ] {
        assert_eq!(compare(original, wording), Ok(()), "{original} / {wording}");
    }
}

#[test]
fn a_lost_or_new_fact_is_named() {
    for (original, wording, outcome) in [
        ("warfarin 5 mg", "warfarin 50 mg", Outcome::Number),
        ("warfarin 5 mg", "warfarin", Outcome::Number),
        ("on warfarin", "on warfarin 5 mg", Outcome::Number),
        ("BP 90/50", "BP 90", Outcome::Number),
        ("1.5 mg", "15 mg", Outcome::Number),
        ("fentanyl 25 mcg", "fentanyl 25 mg", Outcome::Unit),
        ("fentanyl 25 mcg/h", "fentanyl 25 mcg", Outcome::Unit),
        ("3 days of it", "3 weeks of it", Outcome::Unit),
        ("82M", "An 82-month-old boy", Outcome::Unit),
        ("on warfarin", "on a blood thinner", Outcome::Drug),
        ("on metoprolol", "on methimazole", Outcome::Drug),
        ("on tablets", "on aspirin", Outcome::Drug),
        ("no fever", "fever", Outcome::Negation),
        ("fever", "no fever", Outcome::Negation),
        ("afebrile", "fever", Outcome::Negation),
        (
            "no chest pain, denies dyspnoea",
            "no chest pain, but dyspnoea",
            Outcome::Negation,
        ),
        (
            "methotrexate 10 mg weekly",
            "methotrexate 10 mg daily",
            Outcome::Number,
        ),
        (".5 mg digoxin", "5 mg digoxin", Outcome::Number),
        ("1,5 mg digoxin", "15 mg digoxin", Outcome::Number),
        ("BE -8", "BE 8", Outcome::Number),
        ("½ tablet", "1 tablet", Outcome::Number),
        ("SBP < 140", "SBP 140", Outcome::Number),
        ("SBP < 140", "SBP above 140", Outcome::Number),
        (
            "morphine 5 mg then morphine 5 mg",
            "morphine 5 mg",
            Outcome::Number,
        ),
        (
            "digoxin 62.5 mcg, warfarin 5 mg",
            "warfarin 62.5 mcg, digoxin 5 mg",
            Outcome::Number,
        ),
        ("Na 128 K 5.9", "Na 5.9 K 128", Outcome::Number),
        ("no fever but a rash", "fever and no rash", Outcome::Negation),
        (
            "L knee pain, R ankle swollen",
            "right knee pain, left ankle swollen",
            Outcome::Side,
        ),
        (
            "myeloma with a DVT in the leg",
            "myeloma in the leg",
            Outcome::Content,
        ),
        ("a clot in the leg", "a DVT in the leg", Outcome::Content),
        ("left leg swollen", "leg swollen", Outcome::Side),
        ("L leg swollen", "right leg swollen", Outcome::Side),
        (
            "sudden headache vomiting confusion photophobia",
            "What are the treatments for asthma?",
            Outcome::Content,
        ),
    ] {
        assert_eq!(
            difference(original, wording),
            Some(outcome),
            "{original} / {wording}"
        );
    }
}

proptest! {
    /// Any text keeps its own facts, and nothing panics.
    #[test]
    fn a_text_agrees_with_itself(text in "\\PC{0,80}") {
        prop_assert_eq!(compare(&text, &text), Ok(()));
    }

    /// A changed dose never passes.
    #[test]
    fn another_dose_never_passes(dose in 1u32..5000, other in 1u32..5000) {
        prop_assume!(dose != other);
        let text = |dose: u32| format!("give amoxicillin {dose} mg three times, is that right?");
        prop_assert_eq!(difference(&text(dose), &text(other)), Some(Outcome::Number));
    }
}
