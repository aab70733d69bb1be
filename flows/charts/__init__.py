"""Charts as SVG text: pure functions of numbers, without any library; `chart.css` is their look."""
