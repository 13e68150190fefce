//! Plots decode to the size they should have; pages escape all text; bad input is an error.

use lapidary::report::ReportError;
use lapidary::report::bars::{Series, bar_comparison};
use lapidary::report::curves::{LossPoint, Reference, loss_curves, validation_curve};
use lapidary::report::heat_map::similarity_heat_map;
use lapidary::report::html::{Block, Cell, Check, Figure, Page, Section, Table, render};
use lapidary::report::runs::run_scores;

/// Width, height, and how many pixels are not white.
fn decode(png: &[u8]) -> (u32, u32, usize) {
    let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    let num_inked = pixels.chunks(3).filter(|pixel| pixel != &[255, 255, 255]).count();
    (info.width, info.height, num_inked)
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn loss(step: u64, next_token: Option<f64>, contrastive: Option<f64>) -> LossPoint {
    LossPoint { step, next_token, contrastive, alignment: None, similarity: None }
}

#[test]
fn plots_have_two_pixels_a_point() {
    let losses: Vec<LossPoint> =
        (0..100).map(|step| loss(step, Some(4.0 - step as f64 / 100.0), Some(1.0 / (1.0 + step as f64)))).collect();
    let (width, height, num_inked) = decode(&loss_curves("Losses", &losses).unwrap());
    assert_eq!((width, height), (1800, 800));
    assert!(num_inked > 5_000, "{num_inked}");

    let references = [Reference { name: "baseline".to_owned(), value: 70.3 }];
    let curve = [(0, 38.0), (50, 71.0), (100, 75.5)];
    let png = validation_curve("Validation", &curve, &references).unwrap();
    assert_eq!(decode(&png).0, 1800);

    let runs = [vec![76.0, 76.9], vec![79.5]];
    let (width, height, num_inked) = decode(&run_scores("Runs", &names(&["one", "two"]), &runs).unwrap());
    // Title, two lines of 28 points, and the axis; see the constants of the plot.
    assert_eq!((width, height), (2 * 720, 2 * (52 + 2 * 28 + 34)));
    assert!(num_inked > 2_000, "{num_inked}");

    let labels = names(&["one", "two", "three"]);
    let matrix = [1.0, 0.5, -0.5, 0.5, 1.0, 0.0, -0.5, 0.0, 1.0];
    let (width, height, _) = decode(&similarity_heat_map("Similarity", &labels, &matrix).unwrap());
    // Margins, labels, three cells of 64 points and the scale; see the constants of the plot.
    assert_eq!((width, height), (2 * 596, 2 * 296));
}

#[test]
fn odd_but_valid_plots_do_not_fail() {
    loss_curves("", &[loss(7, None, Some(0.0))]).unwrap();
    loss_curves(&"long ".repeat(500), &[loss(0, Some(1e300), None), loss(u64::MAX, Some(-1e300), None)]).unwrap();
    validation_curve("v", &[(5, 3.0), (5, 3.0)], &[]).unwrap();
    let series = [
        Series { name: "a name far too long for one line ".repeat(20), values: vec![Some(-3.0), None] },
        Series { name: "b".to_owned(), values: vec![Some(0.0), Some(1e9)] },
    ];
    bar_comparison("b", &names(&["", "日本語 😀"]), &series).unwrap();
    run_scores("r", &names(&["", "日本語 😀 ".repeat(50).as_str()]), &[vec![5.0], vec![5.0, -1e9]]).unwrap();
    similarity_heat_map("h", &names(&["word ".repeat(300).as_str()]), &[7.0]).unwrap();
}

#[test]
fn empty_and_non_finite_input_is_an_error() {
    assert!(matches!(loss_curves("t", &[]), Err(ReportError::Empty { .. })));
    assert!(loss_curves("t", &[loss(1, None, None)]).is_err());
    assert!(matches!(
        loss_curves("t", &[loss(1, Some(1.0), Some(f64::NAN))]),
        Err(ReportError::NotFinite { what: "contrastive loss", .. })
    ));
    assert!(validation_curve("t", &[], &[]).is_err());
    assert!(validation_curve("t", &[(1, f64::INFINITY)], &[]).is_err());

    let series = |values: &[f64]| [Series { name: "s".to_owned(), values: values.iter().copied().map(Some).collect() }];
    assert!(bar_comparison("t", &[], &series(&[])).is_err());
    assert!(bar_comparison("t", &names(&["g"]), &[]).is_err());
    assert!(bar_comparison("t", &names(&["g"]), &series(&[1.0, 2.0])).is_err());
    assert!(bar_comparison("t", &names(&["g"]), &series(&[f64::NAN])).is_err());

    assert!(run_scores("t", &[], &[]).is_err());
    assert!(run_scores("t", &names(&["a"]), &[vec![]]).is_err());
    assert!(run_scores("t", &names(&["a"]), &[vec![1.0], vec![1.0]]).is_err());
    assert!(run_scores("t", &names(&["a"]), &[vec![f64::NAN]]).is_err());

    assert!(similarity_heat_map("t", &[], &[]).is_err());
    assert!(similarity_heat_map("t", &names(&["a"]), &[f32::NAN]).is_err());
    assert!(similarity_heat_map("t", &names(&["a"]), &[1.0, 1.0]).is_err());
    assert!(similarity_heat_map("t", &vec![String::new(); 33], &vec![0.0; 33 * 33]).is_err());
}

const HOSTILE: &str = r#"<script>alert("1")</script> & 'x' {{ title }}"#;
const ESCAPED: &str = "&lt;script&gt;alert(&quot;1&quot;)&lt;&#x2f;script&gt; &amp; &#x27;x&#x27; {{ title }}";

fn page(blocks: Vec<Block>) -> Page {
    Page {
        title: HOSTILE.to_owned(),
        summary: HOSTILE.to_owned(),
        sections: vec![Section { heading: HOSTILE.to_owned(), blocks }],
        footer: HOSTILE.to_owned(),
    }
}

#[test]
fn all_text_is_escaped() {
    let png = loss_curves("t", &[loss(1, Some(1.0), None)]).unwrap();
    let text = || HOSTILE.to_owned();
    let html = render(&page(vec![
        Block::Paragraph(text()),
        Block::Facts(vec![(text(), text())]),
        Block::Table(Table {
            caption: text(),
            columns: vec![text(), text()],
            groups: vec![(text(), 2)],
            rows: vec![vec![Cell::new(HOSTILE), Cell::new(HOSTILE).best()]],
        }),
        Block::Figure(Figure { png, caption: text(), alternative: text() }),
        Block::Preformatted { caption: text(), text: text() },
        Block::Checks(vec![Check { name: text(), passed: false, explanation: text() }]),
    ]))
    .unwrap();
    assert!(!html.contains("<script"));
    // Title twice, summary, heading, footer; then each block, the table's caption twice.
    assert_eq!(html.matches(ESCAPED).count(), 5 + 1 + 2 + 7 + 2 + 2 + 2);
    assert!(html.contains("data:image/png;base64,iVBORw0KGgo"));
    assert!(html.contains("✗ fail"));
}

#[test]
fn faulty_blocks_are_errors() {
    let ragged = Table {
        caption: "t".to_owned(),
        columns: names(&["a", "b"]),
        rows: vec![vec![Cell::new("1")]],
        ..Table::default()
    };
    assert!(matches!(render(&page(vec![Block::Table(ragged)])), Err(ReportError::Size { expected: 2, found: 1, .. })));
    let figure = |png: &[u8], alternative: &str| {
        page(vec![Block::Figure(Figure {
            png: png.to_vec(),
            caption: "c".to_owned(),
            alternative: alternative.to_owned(),
        })])
    };
    assert!(matches!(render(&figure(b"GIF89a", "x")), Err(ReportError::NotPng { .. })));
    let png = loss_curves("t", &[loss(1, Some(1.0), None)]).unwrap();
    assert!(matches!(render(&figure(&png, " ")), Err(ReportError::NoAlternative { .. })));
}
