// Plays the videos of a group together while they are in view, and draws the boxes over them. Nothing is loaded from anywhere.
// Keys, where the focus is on the play button or on a video: space plays and pauses, the arrows step by 1/16 s, Home goes to the start.
"use strict";
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;

for (const group of document.querySelectorAll("[data-players]")) {
  const videos = [...group.querySelectorAll("video")];
  const sides = [...group.querySelectorAll("[data-boxes]")];
  const button = group.querySelector("button.play");
  if (!videos.length) { if (button) button.hidden = true; continue; }
  let wanted = false;
  const label = () => { button.textContent = wanted ? "❚❚ pause" : ["", "▶ play", "▶ play both"][videos.length] || "▶ play all"; };
  const start = () => { wanted = true; label(); for (const video of videos) if (!video.ended) video.play().catch(() => {}); };
  const stop = () => { wanted = false; label(); for (const video of videos) video.pause(); };
  const seek = (time) => { for (const video of videos) { video.preload = "auto"; video.currentTime = Math.min(time, Math.max((video.duration || Infinity) - 0.001, 0)); } };
  for (const video of videos) {
    video.addEventListener("ended", () => { if (wanted && videos.every((each) => each.ended)) setTimeout(() => { if (wanted) { seek(0); start(); } }, 500); });
    video.addEventListener("click", () => (wanted ? stop() : start()));
    video.tabIndex = 0;
    if (!video.getAttribute("aria-label")) video.setAttribute("aria-label", "video; space plays, arrows step");
  }
  group.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1 / 16, ArrowRight: 1 / 16, Home: -videos[0].currentTime }[event.key];
    const onVideo = videos.includes(event.target);
    if (event.ctrlKey || event.altKey || event.metaKey || !(onVideo || event.target === button)) return;
    if (step !== undefined) { stop(); seek(Math.max(videos[0].currentTime + step, 0)); event.preventDefault(); }
    if (onVideo && event.key === " ") { if (wanted) stop(); else start(); event.preventDefault(); }
  });
  button.addEventListener("click", () => (wanted ? stop() : start()));
  for (const side of sides) {
    const video = side.querySelector("video");
    if (!video) continue;
    const first = side.querySelector(".strip img"); // a picture until the video is asked for; decoding them all at once takes long
    if (first) video.poster = first.src;
    const boxes = JSON.parse(side.dataset.boxes), over = side.querySelector(".screen .over");
    const heads = [...side.querySelectorAll(".timeline")].map((timeline) => {
      const head = document.createElement("em");
      timeline.append(head);
      timeline.addEventListener("click", (event) => {
        const area = timeline.getBoundingClientRect();
        stop();
        seek(((event.clientX - area.left) / area.width) * Number(side.dataset.duration));
      });
      return head;
    });
    let drawn = "";
    const draw = () => {
      const time = video.currentTime + 1e-3;
      for (const head of heads) head.style.left = `${Math.min((100 * time) / Number(side.dataset.duration), 100)}%`;
      const now = boxes.filter((box) => box[0] <= time && time < box[1]), text = JSON.stringify(now);
      if (text === drawn) return;
      drawn = text;
      over.replaceChildren(...now.map(([, , xmin, ymin, xmax, ymax, colour]) => {
        const box = document.createElement("span");
        box.className = "box";
        box.style.cssText = `left:${xmin / 10}%;top:${ymin / 10}%;width:${(xmax - xmin) / 10}%;height:${(ymax - ymin) / 10}%`;
        box.style.borderColor = colour;
        return box;
      }));
    };
    const follow = () => { draw(); if (!video.paused) requestAnimationFrame(follow); };
    video.addEventListener("play", follow);
    video.addEventListener("seeked", draw);
    video.addEventListener("loadeddata", draw);
  }
  label();
  if (!still) new IntersectionObserver(([entry]) => (entry.isIntersecting ? start() : stop()), { threshold: 0.35 }).observe(group);
}
