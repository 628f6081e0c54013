//! How backgrounds are painted. Coordinates are parts of the picture's side, from the upper left.

use tiny_skia::{
    Color, FillRule, GradientStop, LinearGradient, Paint, Path, PathBuilder, Pixmap, Point, Rect, Shader, SpreadMode,
    Stroke, Transform,
};

use crate::background::Background;
use crate::palette::Rgb;

/// Where the sky of the meadow and of the sea ends.
const HORIZON: f32 = 0.52;

/// The night's stars: x, y, radius.
const STARS: [(f32, f32, f32); 16] = [
    (0.06, 0.13, 0.006),
    (0.15, 0.42, 0.005),
    (0.11, 0.78, 0.007),
    (0.24, 0.22, 0.008),
    (0.29, 0.61, 0.005),
    (0.34, 0.91, 0.006),
    (0.41, 0.08, 0.005),
    (0.46, 0.45, 0.007),
    (0.53, 0.73, 0.006),
    (0.58, 0.26, 0.005),
    (0.67, 0.12, 0.008),
    (0.71, 0.55, 0.006),
    (0.77, 0.86, 0.008),
    (0.84, 0.31, 0.005),
    (0.91, 0.66, 0.006),
    (0.94, 0.09, 0.005),
];

/// Paints a background over all of a square canvas.
pub(crate) fn paint(canvas: &mut Pixmap, background: Background) {
    let mut painter = Painter { scale: Transform::from_scale(canvas.width() as f32, canvas.height() as f32), canvas };
    match (background, background.colours()) {
        (Background::Sky, &[top, bottom]) => {
            painter.band(0.0, 1.0, top, bottom);
            for (x, y, width) in [(0.2, 0.2, 0.26), (0.78, 0.36, 0.3), (0.3, 0.62, 0.32), (0.74, 0.84, 0.24)] {
                painter.ellipse(x, y, width, 0.035, ([255, 255, 255], 34));
                painter.ellipse(x + 0.08, y - 0.025, width * 0.5, 0.03, ([255, 255, 255], 34));
            }
        }
        (Background::Night, &[top, bottom]) => {
            painter.band(0.0, 1.0, top, bottom);
            for (x, y, radius) in STARS {
                painter.ellipse(x, y, 2.0 * radius, 2.0 * radius, ([255, 250, 225], 230));
            }
        }
        (Background::Meadow, &[top, haze, far, near]) => {
            painter.band(0.0, HORIZON + 0.12, top, haze);
            painter.hill([HORIZON + 0.05, HORIZON - 0.07, HORIZON + 0.1], far);
            painter.hill([HORIZON + 0.26, HORIZON + 0.27, HORIZON + 0.12], near);
        }
        (Background::Sea, &[top, haze, far, near]) => {
            painter.band(0.0, HORIZON, top, haze);
            painter.band(HORIZON, 1.0, far, near);
            for (row, shift) in [(0.6, 0.0), (0.7, 0.12), (0.81, 0.04), (0.92, 0.17)] {
                painter.waves(row, shift);
            }
        }
        (_, colours) => {
            for &colour in colours {
                painter.band(0.0, 1.0, colour, colour);
            }
        }
    }
}

struct Painter<'a> {
    canvas: &'a mut Pixmap,
    scale: Transform,
}

impl Painter<'_> {
    /// Everything from `top` to `bottom`, from one colour to another.
    fn band(&mut self, top: f32, bottom: f32, first: Rgb, last: Rgb) {
        let shader = if first == last {
            Some(Shader::SolidColor(opaque(first)))
        } else {
            LinearGradient::new(
                Point::from_xy(0.0, top),
                Point::from_xy(0.0, bottom),
                vec![GradientStop::new(0.0, opaque(first)), GradientStop::new(1.0, opaque(last))],
                SpreadMode::Pad,
                Transform::identity(),
            )
        };
        if let (Some(shader), Some(area)) = (shader, Rect::from_ltrb(0.0, top, 1.0, bottom)) {
            self.fill(Some(PathBuilder::from_rect(area)), shader);
        }
    }

    /// An ellipse by its middle, width and height, in a colour of some opacity.
    fn ellipse(&mut self, x: f32, y: f32, width: f32, height: f32, colour: (Rgb, u8)) {
        let area = Rect::from_xywh(x - width / 2.0, y - height / 2.0, width, height);
        self.fill(area.and_then(PathBuilder::from_oval), translucent(colour));
    }

    /// Ground below a curve through the heights at the left, in the middle (as a control point) and at the right.
    fn hill(&mut self, heights: [f32; 3], colour: Rgb) {
        let mut path = PathBuilder::new();
        path.move_to(0.0, 1.0);
        path.line_to(0.0, heights[0]);
        path.quad_to(0.5, heights[1], 1.0, heights[2]);
        path.line_to(1.0, 1.0);
        path.close();
        self.fill(path.finish(), Shader::SolidColor(opaque(colour)));
    }

    /// A row of short waves, faint enough not to be taken for objects.
    fn waves(&mut self, y: f32, shift: f32) {
        let (step, length, height) = (0.26, 0.07, 0.018);
        let mut path = PathBuilder::new();
        for wave in 0..4 {
            let x = shift + step * wave as f32;
            path.move_to(x, y);
            path.quad_to(x + length / 2.0, y - height, x + length, y);
            path.quad_to(x + length * 1.5, y + height, x + length * 2.0, y);
        }
        let stroke = Stroke { width: 0.012, ..Stroke::default() };
        let paint = Paint { shader: translucent(([255, 255, 255], 60)), anti_alias: true, ..Paint::default() };
        if let Some(path) = path.finish() {
            self.canvas.stroke_path(&path, &paint, &stroke, self.scale, None);
        }
    }

    fn fill(&mut self, path: Option<Path>, shader: Shader<'_>) {
        let paint = Paint { shader, anti_alias: true, ..Paint::default() };
        if let Some(path) = path {
            self.canvas.fill_path(&path, &paint, FillRule::Winding, self.scale, None);
        }
    }
}

fn opaque([red, green, blue]: Rgb) -> Color {
    Color::from_rgba8(red, green, blue, 255)
}

fn translucent(([red, green, blue], alpha): (Rgb, u8)) -> Shader<'static> {
    Shader::SolidColor(Color::from_rgba8(red, green, blue, alpha))
}
