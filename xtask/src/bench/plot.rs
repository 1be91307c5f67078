//! Plots of results: `target/bench/NAME.json` becomes `docs/performance/NAME.svg`.
//!
//! One panel for each unit, one line for each case: a filled dot is ours, a ring the reference, bars are the spread of
//! the rounds. The scale is logarithmic, since a bench's cases may lie decades apart.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde::Deserialize;

use super::{Better, Row};

/// A result as its file has it.
#[derive(Debug, Deserialize)]
struct Saved {
    bench: String,
    calibration: SavedCalibration,
    #[serde(default)]
    load: Option<f64>,
    rows: Vec<Row>,
}

#[derive(Debug, Deserialize)]
struct SavedCalibration {
    tcp_rtt_us: f64,
    fdatasync_us: f64,
}

const WIDTH: u32 = 960;
const TITLE_HEIGHT: u32 = 56;
const PANEL_HEIGHT: u32 = 64;
const ROW_HEIGHT: u32 = 22;
const NAMES_WIDTH: u32 = 190;
const FIGURES_WIDTH: u32 = 250;
const OURS: RGBColor = RGBColor(0, 90, 181);
const REFERENCE: RGBColor = RGBColor(220, 90, 20);
const TEXT: RGBColor = RGBColor(40, 40, 40);
const FAINT: RGBColor = RGBColor(120, 120, 120);

/// Draws every result in `from` and says which plots were written.
pub fn all(from: &Path, to: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(from).with_context(|| format!("no results in {}", from.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|ext| ext == "json") {
            files.push(path);
        }
    }
    files.sort();
    ensure!(!files.is_empty(), "no results in {}: run `cargo xtask bench` first", from.display());
    fs::create_dir_all(to)?;
    let mut plots = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file)?;
        let saved: Saved =
            serde_json::from_str(&text).with_context(|| format!("{}", file.display()))?;
        let plot = to.join(format!("{}.svg", saved.bench));
        fs::write(&plot, draw(&saved)?)?;
        plots.push(plot);
    }
    Ok(plots)
}

/// The rows of one unit, in their order.
#[derive(Debug)]
struct Panel<'a> {
    unit: &'a str,
    better: Better,
    rows: Vec<&'a Row>,
}

fn panels(rows: &[Row]) -> Vec<Panel<'_>> {
    let mut panels: Vec<Panel<'_>> = Vec::new();
    for row in rows {
        match panels.iter_mut().find(|panel| panel.unit == row.unit && panel.better == row.better) {
            Some(panel) => panel.rows.push(row),
            None => panels.push(Panel { unit: &row.unit, better: row.better, rows: vec![row] }),
        }
    }
    panels
}

impl Panel<'_> {
    fn height(&self) -> u32 {
        let rows = u32::try_from(self.rows.len()).unwrap_or(u32::MAX);
        PANEL_HEIGHT.saturating_add(rows.saturating_mul(ROW_HEIGHT))
    }

    /// A range of whole decades' halves around all figures, for a logarithmic axis.
    fn range(&self) -> (f64, f64) {
        let figures = self.rows.iter().flat_map(|row| {
            let spreads = [row.ours_spread, row.reference_spread];
            let ends = spreads.into_iter().flatten().flatten();
            [Some(row.ours), row.reference].into_iter().flatten().chain(ends)
        });
        let positive = figures.filter(|figure| *figure > 0.0 && figure.is_finite());
        let (least, greatest) = positive.fold((f64::INFINITY, 0.0_f64), |(low, high), figure| {
            (low.min(figure), high.max(figure))
        });
        if greatest > 0.0 { (least / 1.5, greatest * 1.5) } else { (0.1, 10.0) }
    }
}

fn draw(saved: &Saved) -> Result<String> {
    let panels = panels(&saved.rows);
    let height = panels.iter().map(Panel::height).fold(TITLE_HEIGHT, u32::saturating_add);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE).map_err(said)?;
        title(&root, saved)?;
        let (_, mut rest) = root.split_vertically(TITLE_HEIGHT);
        for panel in &panels {
            let (area, below) = rest.split_vertically(panel.height());
            draw_panel(&area, panel)?;
            rest = below;
        }
        root.present().map_err(said)?;
    }
    Ok(svg)
}

/// Errors of the drawing library borrow from it; what they say does not.
fn said(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("{error}")
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn style(size: u32, color: RGBColor) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&color).pos(Pos::new(HPos::Left, VPos::Center))
}

fn title(root: &Area<'_>, saved: &Saved) -> Result<()> {
    let name = format!("bench {}", saved.bench);
    root.draw(&Text::new(name, (14, 18), style(18, TEXT))).map_err(said)?;
    let load = saved.load.map_or(String::new(), |load| format!(", other load {load:.1}"));
    let SavedCalibration { tcp_rtt_us, fdatasync_us } = saved.calibration;
    let machine = format!(
        "machine: loopback round trip {tcp_rtt_us:.0} us, fdatasync {fdatasync_us:.0} us{load}"
    );
    root.draw(&Text::new(machine, (14, 42), style(12, FAINT))).map_err(said)?;
    for (x, what, color, filled) in
        [(690, "ours", OURS, true), (770, "reference", REFERENCE, false)]
    {
        root.draw(&mark((x, 18), color, filled)).map_err(said)?;
        root.draw(&Text::new(what, (x + 10, 18), style(13, TEXT))).map_err(said)?;
    }
    Ok(())
}

fn mark<C>(at: C, color: RGBColor, filled: bool) -> Circle<C, i32> {
    let style = if filled { color.filled() } else { color.stroke_width(2) };
    Circle::new(at, 5, style)
}

fn draw_panel(area: &Area<'_>, panel: &Panel<'_>) -> Result<()> {
    let better = match panel.better {
        Better::Higher => "more is better",
        Better::Lower => "less is better",
    };
    let heading = format!("{}: {better}", panel.unit);
    area.draw(&Text::new(heading, (14, 14), style(14, TEXT))).map_err(said)?;
    let (least, greatest) = panel.range();
    let lines = u32::try_from(panel.rows.len())?;
    let mut chart = ChartBuilder::on(area)
        .margin_top(26)
        .margin_left(NAMES_WIDTH)
        .margin_right(FIGURES_WIDTH)
        .x_label_area_size(24)
        .build_cartesian_2d((least..greatest).log_scale(), 0.0..f64::from(lines))
        .map_err(said)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .x_labels(8)
        .x_label_formatter(&|figure| short(*figure))
        .x_label_style(("sans-serif", 11).into_font().color(&FAINT))
        .light_line_style(WHITE)
        .bold_line_style(RGBColor(225, 225, 225))
        .draw()
        .map_err(said)?;
    for (number, row) in (0u32..).zip(&panel.rows) {
        let y = f64::from(lines - number) - 0.5;
        let spreads = [(row.ours_spread, OURS, 0.1), (row.reference_spread, REFERENCE, -0.1)];
        for (spread, color, shift) in spreads {
            if let Some([low, high]) = spread {
                let line = [(low.max(least), y + shift), (high.max(least), y + shift)];
                chart.draw_series([PathElement::new(line, color.stroke_width(2))]).map_err(said)?;
            }
        }
        if let Some(reference) = row.reference.filter(|figure| *figure > 0.0) {
            chart.draw_series([mark((reference, y), REFERENCE, false)]).map_err(said)?;
        }
        if row.ours > 0.0 {
            chart.draw_series([mark((row.ours, y), OURS, true)]).map_err(said)?;
        }
        let (_, pixel) = chart.backend_coord(&(least, y));
        let pixel = pixel - area.get_base_pixel().1;
        area.draw(&Text::new(row.case.clone(), (14, pixel), style(12, TEXT))).map_err(said)?;
        let x = i32::try_from(WIDTH - FIGURES_WIDTH + 12)?;
        area.draw(&Text::new(figures(row), (x, pixel), style(12, TEXT))).map_err(said)?;
    }
    Ok(())
}

/// A row's figures in words.
fn figures(row: &Row) -> String {
    let ours = short(row.ours);
    match (row.reference, row.ratio) {
        (Some(reference), Some(ratio)) => {
            format!("{ours} against {}, ratio {ratio:.2}", short(reference))
        }
        _ => ours,
    }
}

/// Three digits or so, and thousands separated.
fn short(figure: f64) -> String {
    match figure.abs() {
        size if size < 10.0 => format!("{figure:.2}"),
        size if size < 100.0 => format!("{figure:.1}"),
        _ => {
            let digits = format!("{:.0}", figure.abs());
            let mut text = String::new();
            for (place, digit) in digits.chars().enumerate() {
                if place > 0 && (digits.len() - place).is_multiple_of(3) {
                    text.push(',');
                }
                text.push(digit);
            }
            if figure < 0.0 { format!("-{text}") } else { text }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved() -> Saved {
        let tps = Row::of_rounds("a/1", &[900.0, 1000.0, 1100.0], "tps", Better::Higher).unwrap();
        Saved {
            bench: "some".to_owned(),
            calibration: SavedCalibration { tcp_rtt_us: 9.0, fdatasync_us: 120.0 },
            load: Some(0.1),
            rows: vec![
                tps.clone().against_rounds(&[2000.0, 2100.0], "stock").unwrap(),
                Row::new("a/2", 3.5, "us", Better::Lower),
                Row { case: "a/<3>".to_owned(), ..tps },
                Row::new("nothing", 0.0, "s", Better::Lower),
            ],
        }
    }

    #[test]
    fn a_plot_names_every_case_and_figure() {
        let svg = draw(&saved()).unwrap();
        for text in
            ["bench some", "a/1", "a/2", "a/&lt;3&gt;", "1,000 against 2,100, ratio 0.48", "3.50"]
        {
            assert!(svg.contains(text), "{text} is missing in {svg}");
        }
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn rows_are_kept_together_by_unit() {
        let saved = saved();
        let panels = panels(&saved.rows);
        let units: Vec<_> = panels.iter().map(|panel| (panel.unit, panel.rows.len())).collect();
        assert_eq!(units, [("tps", 2), ("us", 1), ("s", 1)]);
    }

    #[test]
    fn figures_are_short() {
        let cases = [(0.5, "0.50"), (12.34, "12.3"), (999.6, "1,000"), (1_234_567.0, "1,234,567")];
        for (figure, text) in cases {
            assert_eq!(short(figure), text);
        }
        assert_eq!(short(-1234.0), "-1,234");
    }

    #[test]
    fn results_become_files() {
        let dir = tempfile::tempdir().unwrap();
        assert!(all(dir.path(), &dir.path().join("plots")).is_err());
        let result = r#"{"bench": "x", "calibration": {"tcp_rtt_us": 1.0, "fdatasync_us": 2.0, "loadavg": 0.0},
            "rows": [{"case": "c", "ours": 1.0, "reference": null, "reference_is": null, "ratio": null,
                      "unit": "s", "better": "lower"}]}"#;
        fs::write(dir.path().join("x.json"), result).unwrap();
        let plots = all(dir.path(), &dir.path().join("plots")).unwrap();
        assert_eq!(plots, [dir.path().join("plots/x.svg")]);
        assert!(fs::read_to_string(&plots[0]).unwrap().contains("<svg"));
    }
}
