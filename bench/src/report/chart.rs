//! Charts of a table as SVG: lines over a column of numbers, or bars, one for each row.
//!
//! Axes are logarithmic if the largest value is at least fifty times the smallest. Axes of bars never are: the
//! length of a bar would then mean nothing. Text uses the viewer's own sans-serif font, so that no font is needed here.

use std::{ops::Range, path::Path};

use anyhow::anyhow;
use plotters::{
    coord::{
        Shift,
        ranged1d::{DefaultFormatting, KeyPointHint},
        types::RangedCoordf64,
    },
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{Cell, Table, grouped};

const WIDTH: u32 = 860;
const LINES_HEIGHT: u32 = 440;
/// Title and legend.
const HEADER_HEIGHT: u32 = 66;
const BAR_HEIGHT: u32 = 18;
const BAR_GROUP_GAP: u32 = 14;
/// Height of the axis and its description below the bars.
const BARS_FOOTER_HEIGHT: u32 = 70;
/// Approximate width of a letter of the axes' text.
const LETTER: u32 = 7;
const LABEL_WIDTH_MIN: u32 = 60;
const LABEL_WIDTH_MAX: u32 = 380;
/// Largest ratio between the values of a linear axis.
const LINEAR_SPAN_MAX: f64 = 50.0;

const TITLE_SIZE: u32 = 20;
const TEXT_SIZE: u32 = 14;
const INK: RGBColor = RGBColor(40, 40, 40);
const GRID: RGBColor = RGBColor(218, 218, 218);
const BASELINE: RGBColor = RGBColor(150, 150, 150);
/// Colours that people who cannot tell red from green can tell apart, too.
const COLOURS: [RGBColor; 5] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
];

/// A column that is drawn, and its name in the legend.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    column: usize,
    name: &'static str,
}

impl Series {
    /// Draws a column; the first one has number 0.
    pub(crate) fn new(column: usize, name: &'static str) -> Self {
        Self { column, name }
    }
}

/// How a table is drawn.
#[derive(Clone, Debug)]
pub(crate) struct Chart {
    /// Name of the file, without its extension.
    pub(super) file: &'static str,
    /// The title above the chart.
    pub(super) title: &'static str,
    shape: Shape,
    /// What the values are, with their unit.
    values: &'static str,
    series: Vec<Series>,
    only: &'static str,
    baseline: Option<&'static str>,
}

#[derive(Clone, Copy, Debug)]
enum Shape {
    /// Lines over the first column. This is its description, with its unit.
    Lines(&'static str),
    Bars,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// How values are laid out along an axis.
struct Scale {
    log: bool,
    range: Range<f64>,
    /// Positions of the marks, in the axis's own measure.
    marks: Vec<f64>,
}

/// An axis with marks at the positions that we choose.
struct Axis {
    places: RangedCoordf64,
    marks: Vec<f64>,
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, place: &f64, limit: (i32, i32)) -> i32 {
        self.places.map(place, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.marks.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.places.range()
    }
}

impl Chart {
    /// Lines over the first column.
    pub(crate) fn lines(
        file: &'static str,
        title: &'static str,
        over: &'static str,
        values: &'static str,
        series: &[Series],
    ) -> Self {
        Self { file, title, shape: Shape::Lines(over), values, series: series.to_vec(), only: "", baseline: None }
    }

    /// A bar for each row and series.
    pub(crate) fn bars(file: &'static str, title: &'static str, values: &'static str, series: &[Series]) -> Self {
        Self { file, title, shape: Shape::Bars, values, series: series.to_vec(), only: "", baseline: None }
    }

    /// Draws only the rows whose name contains this.
    pub(crate) fn only(self, only: &'static str) -> Self {
        Self { only, ..self }
    }

    /// Draws the rows whose name contains this as the baseline.
    pub(crate) fn baseline(self, baseline: &'static str) -> Self {
        Self { baseline: Some(baseline), ..self }
    }

    /// Draws the chart into a file. Returns false if there is nothing to draw.
    pub(super) fn draw(&self, table: &Table, path: &Path) -> anyhow::Result<bool> {
        let rows: Vec<_> = table
            .rows
            .iter()
            .filter(|row| row[0].to_string().contains(self.only))
            .filter(|row| matches!(self.shape, Shape::Bars) || row[0].value().is_some())
            .filter(|row| self.series.iter().any(|series| row[series.column].value().is_some()))
            .map(Vec::as_slice)
            .collect();
        if rows.is_empty() {
            return Ok(false);
        }
        let height = match self.shape {
            Shape::Lines(_) => LINES_HEIGHT,
            Shape::Bars => {
                let group = self.series.len() as u32 * BAR_HEIGHT + BAR_GROUP_GAP;
                HEADER_HEIGHT + rows.len() as u32 * group + BARS_FOOTER_HEIGHT
            }
        };
        let root = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
        let drawn = root.fill(&WHITE).map_err(anyhow::Error::new).and_then(|()| {
            let (header, body) = root.split_vertically(HEADER_HEIGHT);
            self.header(&header)?;
            match self.shape {
                Shape::Lines(over) => self.draw_lines(&body, over, &rows),
                Shape::Bars => self.draw_bars(&body, &rows),
            }
        });
        drawn.and_then(|()| Ok(root.present()?)).map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))?;
        Ok(true)
    }

    fn header(&self, area: &Area<'_>) -> anyhow::Result<()> {
        area.draw_text(self.title, &("sans-serif", TITLE_SIZE).into_text_style(area).color(&INK), (16, 10))?;
        if self.series.len() < 2 {
            return Ok(());
        }
        let style = ("sans-serif", TEXT_SIZE).into_text_style(area).color(&INK);
        let mut left = 16;
        for (series, colour) in self.series.iter().zip(COLOURS.iter().cycle()) {
            area.draw(&Rectangle::new([(left, 43), (left + 12, 55)], colour.filled()))?;
            area.draw_text(series.name, &style, (left + 18, 41))?;
            left += 40 + series.name.chars().count() as i32 * (LETTER as i32 + 1);
        }
        Ok(())
    }

    fn draw_lines(&self, area: &Area<'_>, over: &str, rows: &[&[Cell]]) -> anyhow::Result<()> {
        let places: Vec<f64> = rows.iter().filter_map(|row| row[0].value()).collect();
        let values: Vec<f64> =
            self.series.iter().flat_map(|series| rows.iter().filter_map(|row| row[series.column].value())).collect();
        let mut x = Scale::of(&places, false);
        x.marks = places.iter().map(|&place| x.place(place)).collect();
        let y = Scale::of(&values, true);
        let mut chart = ChartBuilder::on(area)
            .margin(14)
            .margin_right(30)
            .x_label_area_size(46)
            .y_label_area_size(84)
            .build_cartesian_2d(x.axis(), y.axis())?;
        chart
            .configure_mesh()
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .axis_style(INK)
            .label_style(("sans-serif", TEXT_SIZE).into_font().color(&INK))
            .x_desc(over)
            .y_desc(self.values)
            .x_label_formatter(&|&place| short(x.value(place)))
            .y_label_formatter(&|&place| short(y.value(place)))
            .draw()?;
        for (series, &colour) in self.series.iter().zip(COLOURS.iter().cycle()) {
            let points: Vec<_> = rows
                .iter()
                .filter_map(|row| Some((x.place(row[0].value()?), y.place(row[series.column].value()?))))
                .collect();
            chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?;
            chart.draw_series(points.iter().map(|&point| Circle::new(point, 4, colour.filled())))?;
        }
        Ok(())
    }

    fn draw_bars(&self, area: &Area<'_>, rows: &[&[Cell]]) -> anyhow::Result<()> {
        let value = |row: &[Cell], series: &Series| row[series.column].value().unwrap_or(0.0);
        let values: Vec<f64> =
            rows.iter().flat_map(|row| self.series.iter().map(move |series| value(row, series))).collect();
        let x = Scale::linear(&values, true);
        let labels: Vec<String> = rows.iter().map(|row| row[0].to_string()).collect();
        let longest = labels.iter().map(|label| label.chars().count()).max().unwrap_or_default() as u32;
        // The first row is at the top.
        let middles = (0..rows.len()).map(|at| (rows.len() - at) as f64 - 0.5).collect();
        let y = Axis { places: (0.0..rows.len() as f64).into(), marks: middles };
        let mut chart = ChartBuilder::on(area)
            .margin(8)
            // Room for the figure beside the longest bar.
            .margin_right(90)
            .x_label_area_size(46)
            .y_label_area_size((longest * LETTER + 20).clamp(LABEL_WIDTH_MIN, LABEL_WIDTH_MAX))
            .build_cartesian_2d(x.axis(), y)?;
        let label =
            |&place: &f64| labels.get(rows.len().saturating_sub((place + 0.5) as usize)).cloned().unwrap_or_default();
        chart
            .configure_mesh()
            .disable_y_mesh()
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .axis_style(INK)
            .label_style(("sans-serif", TEXT_SIZE).into_font().color(&INK))
            .x_desc(self.values)
            .x_label_formatter(&|&place| short(place))
            .y_label_formatter(&label)
            .draw()?;
        let group = (self.series.len() as u32 * BAR_HEIGHT + BAR_GROUP_GAP) as f64;
        let (height, gap) = (f64::from(BAR_HEIGHT) / group, f64::from(BAR_GROUP_GAP) / group);
        let style = ("sans-serif", TEXT_SIZE).into_font().color(&INK).pos(Pos::new(HPos::Left, VPos::Center));
        for (row, top) in rows.iter().zip((1..=rows.len()).rev()) {
            for (at, (series, colour)) in self.series.iter().zip(COLOURS.iter().cycle()).enumerate() {
                if row[series.column].value().is_none() {
                    continue;
                }
                let upper = top as f64 - gap / 2.0 - at as f64 * height;
                let end = value(row, series);
                let is_baseline = self.baseline.is_some_and(|name| row[0].to_string().contains(name));
                let colour = if is_baseline { &BASELINE } else { colour };
                let bar = Rectangle::new([(0.0, upper - height), (end, upper)], colour.filled());
                let figure = EmptyElement::at((end, upper - height / 2.0))
                    + Text::new(row[series.column].to_string(), (6, 0), style.clone());
                chart.draw_series([bar])?;
                chart.draw_series([figure])?;
            }
        }
        Ok(())
    }
}

impl Scale {
    /// A scale for these values, with marks at round ones. `from_zero` makes a linear one start at zero, so that
    /// lengths show how large values are.
    fn of(values: &[f64], from_zero: bool) -> Self {
        let (least, most) = bounds(values);
        if least > 0.0 && most / least >= LINEAR_SPAN_MAX {
            Self::log(least, most)
        } else {
            Self::linear(values, from_zero)
        }
    }

    fn log(least: f64, most: f64) -> Self {
        let range = (least.log10() - 0.1)..(most.log10() + 0.1);
        let powers = (range.start.floor() as i32)..=(range.end.ceil() as i32);
        // If there are few powers of ten, twice and five times each also get marks.
        let between: &[f64] = if range.end - range.start < 3.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let marks = powers
            .flat_map(|power| between.iter().map(move |times| f64::from(power) + times.log10()))
            .filter(|mark| range.contains(mark))
            .collect();
        Self { log: true, range, marks }
    }

    fn linear(values: &[f64], from_zero: bool) -> Self {
        let (least, most) = bounds(values);
        let least = if from_zero { least.min(0.0) } else { least };
        let span = if most > least { most - least } else { most.abs().max(1.0) };
        let most = least + span * 1.05;
        let step = 10_f64.powf((span / 5.0).log10().floor());
        let step =
            [1.0, 2.0, 5.0, 10.0].iter().map(|times| times * step).find(|step| span / step <= 6.0).unwrap_or(span);
        let first = (least / step).ceil() as i64;
        let marks = (first..).map(|at| at as f64 * step).take_while(|&mark| mark <= most).collect();
        let start = if from_zero { least } else { least - span * 0.03 };
        Self { log: false, range: start..most, marks }
    }

    /// The position of a value.
    fn place(&self, value: f64) -> f64 {
        if self.log { value.log10() } else { value }
    }

    /// The value at a position.
    fn value(&self, place: f64) -> f64 {
        if self.log { 10_f64.powf(place) } else { place }
    }

    fn axis(&self) -> Axis {
        Axis { places: self.range.clone().into(), marks: self.marks.clone() }
    }
}

fn bounds(values: &[f64]) -> (f64, f64) {
    let finite = values.iter().copied().filter(|value| value.is_finite());
    finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), value| (least.min(value), most.max(value)))
}

/// A mark's value, with no more decimals than it needs.
fn short(value: f64) -> String {
    let decimals = (0..4).find(|&decimals| {
        let scale = 10_f64.powi(decimals);
        ((value * scale).round() / scale - value).abs() <= value.abs() * 1e-6
    });
    grouped(value, decimals.unwrap_or(4) as usize)
}
