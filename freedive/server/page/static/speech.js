// Reading aloud and dictation, where the browser has them.

const Recognition = window.SpeechRecognition ?? window.webkitSpeechRecognition;

export const canSpeak = "speechSynthesis" in window;
export const canListen = Boolean(Recognition);

// A second call ends the first.
export function speak(text) {
  const wasSpeaking = speechSynthesis.speaking;
  speechSynthesis.cancel();
  if (!wasSpeaking) speechSynthesis.speak(new SpeechSynthesisUtterance(text));
}

// Writes down what is said until it is called again or the speaker pauses.
export function dictation(write, end) {
  const listener = new Recognition();
  listener.lang = document.documentElement.lang === "zh" ? "zh-CN" : navigator.language;
  listener.continuous = true;
  listener.onresult = ({ results, resultIndex }) => {
    for (const result of [...results].slice(resultIndex)) if (result.isFinal) write(result[0].transcript);
  };
  listener.onend = end;
  listener.start();
  return () => listener.stop();
}
