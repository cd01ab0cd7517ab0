"""`strict` on answers as chat models write them, in many languages and scripts."""

import collections
from pathlib import Path
import time
import tomllib
import unicodedata

import hypothesis
from hypothesis import strategies as st
import pytest

from crossin_jax.data.thoughts import without_thoughts
from crossin_jax.evaluation.answers.strict import strict

LETTERS = 'ABCD'
CHAT = tomllib.loads(Path(__file__).with_name('chat_answers.toml').read_text(encoding='utf-8'))


def chat_answers():
  """(language, form, answer, choices, right option): 1,000, letters balanced."""
  for language, table in CHAT.items():
    for f, form in enumerate(table['forms']):
      for i, texts in enumerate(table['items']):
        right = (i + f) % 4
        wrong = (right + 1 + i % 3) % 4
        text = form
        for name, value in zip(
          'LTMU', (LETTERS[right], texts[right], LETTERS[wrong], texts[wrong])
        ):
          text = text.replace('{' + name + '}', value)
        choices = [f'({letter}) {option}' for letter, option in zip(LETTERS, texts)]
        yield language, f, text, choices, right


def test_a_thousand_chat_answers():
  answers = list(chat_answers())
  assert len(answers) == 1000
  assert max(collections.Counter(right for *_, right in answers).values()) <= 260
  unparsed, wrong = [], []
  for language, form, text, choices, right in answers:
    found = strict(text, choices, language)
    assert found == strict(unicodedata.normalize('NFD', text), choices, language)
    if found != right:
      (wrong if found >= 0 else unparsed).append((language, form, text, found, right))
  assert not wrong, wrong[:5]
  assert len(unparsed) <= 5, unparsed


@pytest.mark.parametrize('loop', ['so A ', 'not A but B, ', 'if A would B. ', 'A: wrong\n'])
def test_a_model_that_repeats_itself_is_read_in_linear_time(loop):
  start = time.process_time()
  strict(loop * 2000, CITIES, 'en')
  assert time.process_time() - start < 2


def test_answers_are_read_as_a_careful_reader_does():
  path = Path(__file__).with_name('read_answers.toml')
  groups = tomllib.loads(path.read_text(encoding='utf-8'))['groups']
  answers = [(group, *answer) for group in groups for answer in group['answers']]
  found = [strict(text, group['choices'], group['language']) for group, text, _ in answers]
  wrong = [(a[1:], f) for a, f in zip(answers, found) if f >= 0 and f != a[2]]
  unparsed = [a[1:] for a, f in zip(answers, found) if f < 0 <= a[2]]
  assert len(answers) > 1000 and not wrong, wrong[:5]
  assert len(unparsed) <= 0.05 * len(answers), unparsed


CITIES = ['(A) Paris', '(B) Lima', '(C) Rome', '(D) Oslo']


@pytest.mark.parametrize(
  'text, option',
  [
    ('It is not (A).', -1),
    ("It isn't Paris.", -1),
    ('Not B.', -1),
    ('The answer is not B.', -1),
    ('B is not the answer.', -1),
    ('I am not sure, maybe B or C.', -1),
    ('The answer is either B or C', -1),
    ('Both A and B are correct', -1),
    ('A climate of fear', -1),
    ('Vitamin B is important', -1),
    ('Plan B', -1),
    ('Is it (A)?', -1),
    ('None of the above', -1),
    ('All of A, B, C', -1),
    ('A', 0),
    ('a', 0),
    ('(a)', 0),
    ('Answer: a', 0),
    ('answer: b.', 1),
    ('Answer is A', 0),
    ('The answer is A because it is.', 0),
    ('The answer is a city', -1),
    ('A is the answer.', 0),
    ('A. Because it is so', 0),
    ('Option A', 0),
    ('Choice (C)', 2),
    ('The correct option is C: Rome.', 2),
    ('The best answer would be D.', 3),
    ("I'd go with C.", 2),
    ('C, since Rome is the capital', 2),
    ('C - Rome', 2),
    ('**C**: Rome', 2),
    ('(C)', 2),
    ('[C]', 2),
    ('{C}', 2),
    ('<C>', -1),
    ('Answer：Ｃ', 2),
    ('answer=C', 2),
    ('ANSWER: C', 2),
    ('The answer to the question is C.', 2),
    ('The answer to whether Paris or Lima is the capital is C.', -1),
    ('A: incorrect. B: incorrect. C: correct. D: incorrect.', 2),
    ('A is wrong. B is wrong. D is wrong. So C.', 2),
    ('(A) no (B) no (C) yes (D) no', -1),
    ('Eliminating A and B leaves C and D. D is too cold. The answer is C', 2),
    ('My final answer: **(C) Rome**', 2),
    ('Paris is in France, so the answer is Lima.', 1),
    ('It must be Lima, not Paris.', 1),
    ('The answer is B, not A.', 1),
    ('The answer is B rather than A.', 1),
    ('The answer is not A but B.', 1),
    ('Answer: B (not A)', 1),
    ('Answer: B. Lima\nQuestion: next\nAnswer: C. Rome', 2),
    ('Correct answer: C\n\nExplanation: A, B and D are wrong.', 2),
    ('A good question! I would say Lima.', 1),
    ('I think Lima.', 1),
    ('Lima is the capital of Peru, therefore B.', 1),
    ('The capital is Lima (B).', 1),
    ('B) Lima', 1),
    ('B: Lima', 1),
    ('B- Lima', 1),
    ('"B"', 1),
    ("'B'", 1),
    ('B\n', 1),
    ('  B  ', 1),
    ('Sure! The answer is:\n\n**B. Lima**\n\nLet me know if you need more.', 1),
    ('1. A - wrong\n2. B - right', 1),
    ('Therefore, option B is correct.', 1),
    ('Hence B is the correct choice.', 1),
    ('Thus the correct answer is option (B), Lima.', 1),
    ('The answer is B or not.', 1),
    ('Step 1: consider A. Step 2: consider B. Final: B', 1),
    ('Final Answer: B', 1),
    ('### Final answer\nB', 1),
    ('Answer\nB', 1),
    ('$\\boxed{\\textbf{(B)}}$', 1),
    ('\\boxed{Lima}', 1),
    ('\\boxed{B. Lima}', 1),
    ('La respuesta no es A.', -1),
    ('La respuesta es B, no A.', 1),
    ('Creo que es Lima.', 1),
    ('A resposta correta é B.', 1),
    ('A alternativa correta é a letra C.', 2),
    ('A resposta é A.', 0),
    ('Alternativa B.', 1),
    ('La risposta esatta è la B.', 1),
    ('La réponse est la lettre B.', 1),
    ("Ce n'est pas A.", -1),
    ('Antwort B ist richtig.', 1),
    ('Antwort A ist falsch.', -1),
    ('Die Antwort ist nicht A, sondern B.', 1),
    ('Jawaban yang benar adalah B.', 1),
    ('Jawabannya B', 1),
    ('Jawaban A salah.', -1),
    ('Doğru cevap B şıkkıdır.', 1),
    ('Cevap: B', 1),
    ('Doğru cevap A değildir.', -1),
    ('B seçeneği doğrudur.', 1),
    ('Jibu sahihi ni B.', 1),
    ('Jibu si A.', -1),
    ('Oikea vastaus on B.', 1),
    ('Vastaus: B', 1),
    ('Правильный ответ: B', 1),
    ('Правильный ответ — Б', 1),
    ('Ответ: В', 2),
    ('Ответ не А.', -1),
    ('Верный вариант: Г) Осло', 3),
    ('В России живут медведи.', -1),
    ('答案不是A。', -1),
    ('A不正确，B正确。', 1),
    ('选B', 1),
    ('应该选择B选项', 1),
    ('B选项正确', 1),
    ('选项A错误，选项B正确。', 1),
    ('正确选项为B', 1),
    ('答案是B而不是A', 1),
    ('我认为是B', 1),
    ('答案为 B', 1),
    ('答案选B', 1),
    ('本题选B。', 1),
    ('综上所述，答案为：B', 1),
    ('正解はBではありません。', -1),
    ('正解はBです。Aではありません。', 1),
    ('Bが適切です。', 1),
    ('選択肢Bが正しい', 1),
    ('答えはBだと思います', 1),
    ('정답은 A가 아닙니다.', -1),
    ('정답은 B번입니다.', 1),
    ('B번', 1),
    ('정답: B번', 1),
    ('คำตอบที่ถูกต้องคือ B', 1),
    ('ตอบ B', 1),
    ('ข้อ B. ลิมา', 1),
    ('ไม่ใช่ A', -1),
    ('คำตอบไม่ใช่ A', -1),
    ('الإجابة ليست (أ)', -1),
    ('الإجابة الصحيحة: ب', 1),
    ('ب) ليما', 1),
    ('الخيار ب هو الصحيح', 1),
    ('सही उत्तर (B) है', 1),
    ('उत्तर A नहीं है', -1),
    ('सही विकल्प B है।', 1),
    ('(ख) लीमा', 1),
    ('সঠিক উত্তর হল B', 1),
    ('সঠিক উত্তর A নয়', -1),
    ('சரியான பதில் B', 1),
    ('విడ: B', -1),
    ('సరైన సమాధానం B', 1),
    ('درست جواب B ہے', 1),
    ('Đáp án B', 1),
    ('Đáp án không phải là A', -1),
    ('Chọn B.', 1),
    ('②', 1),
    ('答案是②', 1),
    ('The answer is (E).', -1),
    ('Answer: E', -1),
    ('I cannot answer this question.', -1),
    ('I', -1),
    ('C++ is a language', -1),
    ('He got a B+ in class', -1),
    ('U.S.A. is big', -1),
    ('Answer: A city in Peru called Lima', 1),
    ('{"answer": "B", "reason": "A is wrong"}', 1),
    ("{'choice': 'B'}", 1),
    ('<answer>B</answer>', 1),
    ('<answer>(B) Lima</answer>', 1),
    ('The answer is <b>B</b>.', 1),
    ('<think>A</think>B', 1),
    ('<think>A B C', -1),
    ('[THINK]A[/THINK]B', 1),
    ('Parisian', -1),
    ('Lima-based', 1),
    ("Lima's the one", 1),
    ('LIMA', 1),
    ('The answer is Limas', -1),
  ],
)  # fmt: skip
def test_answers_by_form(text, option):
  """-1 where a reader could not say which option is meant."""
  assert strict(text, CITIES) == option


@pytest.mark.parametrize(
  'text, option',
  [
    ('After careful consideration, I believe the correct answer is option B, as it aligns with the text.', 1),
    ('The answer: B', 1),
    ('Answer - B', 1),
    ('The right choice here is B!', 1),
    ('B is the best option.', 1),
    ('Among the options, B fits best.', -1),
    ('**Final Answer:** The final answer is $\\boxed{B}$. I hope it is correct.', 1),
    ('Let me analyze each option:\n\nA) Paris - This is the capital of France.\nB) Lima - This is the capital of Peru.\nC) Rome - capital of Italy.\nD) Oslo - capital of Norway.\n\nSo the answer is B) Lima.', 1),
    ('Option A is incorrect because it is in France. Option C is incorrect because it is in Italy. Option D is incorrect. Option B is correct.', 1),
    ('A. Paris\nB. Lima\nC. Rome\nD. Oslo\n\nCorrect answer: B', 1),
    ("The correct answer is (B) Lima.\n\nHere's why the other options are incorrect:\n- (A) Paris is the capital of France.\n- (C) Rome is the capital of Italy.\n- (D) Oslo is the capital of Norway.", 1),
    ("I'd say it's B.", 1),
    ("It's B.", 1),
    ('It is B, I think', 1),
    ('Definitely B.', 1),
    ('Hmm, B?', -1),
    ('B?', -1),
    ("My answer is B) Lima because Peru's capital is Lima and not Paris.", 1),
    ('Looking at the passage, the capital mentioned is Lima.', 1),
    ('The capital of Peru is Lima. Paris is the capital of France.', -1),
    ('Respuesta: **B) Lima**\n\nLima es la capital del Perú. París no.', 1),
    ('La respuesta correcta es la opción **B**.', 1),
    ('Opción B: Lima', 1),
    ('La opción correcta es la B', 1),
    ('Sería la B.', 1),
    ('Por lo tanto, la opción correcta es: **B) Lima**', 1),
    ('La bonne réponse est la **B**.', 1),
    ("C'est la réponse B.", 1),
    ('Réponse B : Lima', 1),
    ("Il s'agit de la réponse (B).", 1),
    ('Die richtige Antwort ist: **B) Lima**.', 1),
    ('Richtig ist B.', 1),
    ('Antwort B', 1),
    ('Die korrekte Option ist B.', 1),
    ('Lösung: B', 1),
    ('正确答案是选项B。', 1),
    ('答案：**B. 利马**', 1),
    ('因此，正确答案是：B', 1),
    ('所以选B。', 1),
    ('答案是（B）。', 1),
    ('应选B项。', 1),
    ('B选项是正确答案', 1),
    ('选项B最符合题意。', 1),
    ('由此可知，B正确，A、C、D错误。', 1),
    ('A项错误；B项正确；C项错误；D项错误。', 1),
    ('正解は B です。', 1),
    ('答えは「B」です。', 1),
    ('正解はB（リマ）です。', 1),
    ('選択肢Bが正解です。', 1),
    ('したがって、正しい答えはBです。', 1),
    ('Bが正しい。AとCは間違い。', 1),
    ('정답은 B입니다. A는 틀렸습니다.', 1),
    ('답은 B번입니다.', 1),
    ('따라서 정답은 **B. 리마**입니다.', 1),
    ('B가 정답입니다.', 1),
    ('올바른 답은 (B)입니다.', 1),
    ('الإجابة الصحيحة هي: **ب**', 1),
    ('الإجابة هي الخيار (B).', 1),
    ('الجواب الصحيح هو B.', 1),
    ('إذن الإجابة (ب) صحيحة.', 1),
    ('الخيار الصحيح هو: ب) ليما', 1),
    ('सही उत्तर है: (B) Lima', 1),
    ('उत्तर: B', 1),
    ('सही विकल्प (B) है।', 1),
    ('इसलिए सही उत्तर B है।', 1),
    ('विकल्प B सही है।', 1),
    ('उत्तर (ख) है।', 1),
    ('Đáp án đúng là B.', 1),
    ('Câu trả lời đúng là: **B. Lima**', 1),
    ('Chọn đáp án B.', 1),
    ('Vậy đáp án là B.', 1),
    ('Phương án B đúng.', 1),
    ('B là đáp án đúng.', 1),
    ('คำตอบคือ ข', 1),
    ('คำตอบที่ถูกต้องคือ ข้อ B', 1),
    ('ตอบ ข้อ ข.', 1),
    ('ดังนั้น คำตอบคือ (B) ลิมา', 1),
    ('ข้อ B เป็นคำตอบที่ถูกต้อง', 1),
    ('Правильный ответ: **B**.', 1),
    ('Верный ответ — B.', 1),
    ('Ответ: Б) Лима', 1),
    ('Вариант B верен.', 1),
    ('Таким образом, правильный ответ — (B).', 1),
    ('Doğru cevap **B** seçeneğidir.', 1),
    ('Doğru yanıt: B) Lima', 1),
    ("Cevap B'dir.", 1),
    ('Yanıt: B', 1),
    ('B şıkkı doğrudur.', 1),
    ('Jawaban: B', 1),
    ('Jawaban yang tepat adalah **B. Lima**.', 1),
    ('Jadi, jawabannya adalah B.', 1),
    ('Pilihan B benar.', 1),
    ('Jibu sahihi ni (B).', 1),
    ('Jibu: B', 1),
    ('Chaguo sahihi ni B.', 1),
    ('Tamang sagot: B', 1),
    ('Ang sagot ay B.', 1),
    ('Ang tamang sagot ay (B).', 1),
    ('সঠিক উত্তর: B', 1),
    ('উত্তর হল (খ)।', 1),
    ('সঠিক উত্তরটি হলো B।', 1),
    ('சரியான விடை: B', 1),
    ('விடை (ஆ)', 1),
    ('సరైన సమాధానం: B', 1),
    ('درست جواب: (ب)', 1),
    ('صحیح جواب B ہے۔', 1),
    ('Risposta corretta: B', 1),
    ('La risposta corretta è la **B**.', 1),
    ('A resposta correta é a **B**.', 1),
    ('Resposta: letra B', 1),
    ('Het juiste antwoord is B.', 1),
    ('Prawidłowa odpowiedź to B.', 1),
    ('Răspunsul corect este B.', 1),
    ('Správná odpověď je B.', 1),
    ('A helyes válasz: B', 1),
    ('Rätt svar är B.', 1),
    ('Det rigtige svar er B.', 1),
    ('Oikea vastaus: B', 1),
    ('Σωστή απάντηση: B', 1),
    ('Правилният отговор е B.', 1),
    ('Правильна відповідь: B', 1),
    ('התשובה הנכונה היא B.', 1),
    ('پاسخ صحیح: گزینه B', 1),
    ('{\n  "reasoning": "Paris is in France",\n  "answer": "B"\n}', 1),
    ('answer_letter: B', 1),
    ('<answer>\nB\n</answer>', 1),
    ('ANSWER: (B)', 1),
    ('[B]', 1),
    ('$B$', 1),
    ('\\text{B}', 1),
    ('The answer is \\text{B}.', 1),
    ('#### B', 1),
    ('> B', 1),
    ('- B', 1),
    ('1. B', 1),
    ('A B', -1),
    ('AB', -1),
    ('A, B', -1),
    ('A and C', -1),
    ('C or D, not sure', -1),
    ('I do not know.', -1),
    ('As an AI model, I cannot answer.', -1),
    ('A: Paris B: Lima C: Rome D: Oslo', -1),
    ('The options are A, B, C and D.', -1),
    ('Question: Which is right? A or B?', -1),
    ('A big city like Lima', 1),
    ('As far as I know, A', -1),
    ('a. Paris', 0),
    ('(a) paris', 0),
    ('d)', 3),
    ('D.', 3),
    ('Answer: d', 3),
    ('E) None', -1),
  ],
)  # fmt: skip
def test_answers_as_models_word_them(text, option):
  assert strict(text, CITIES) == option


@pytest.mark.parametrize(
  'text, choices, option',
  [
    ('The answer is 3.5.', ['(A) 3.5', '(B) 5', '(C) 35', '(D) 0.5'], 0),
    ('It is 0,5 then', ['(A) 5', '(B) 0,5', '(C) 50', '(D) 0,05'], 1),
    ('The result is -5', ['(A) 5', '(B) -5'], 1),
    ('The result is 5', ['(A) 5', '(B) -5'], 0),
    ('He paid 1200 in all', ['(A) 12', '(B) 1200', '(C) 120', '(D) 1.2'], 1),
    ('It is Dr. Livingstone.', ['(A) Mr. Stanley', '(B) Dr. Livingstone', '(C) Dr. Kirk'], 1),
    ('The U.S. did.', ['(A) The U.S.', '(B) The U.K.', '(C) France'], 0),
    ('It happened in Nigeria', ['(A) Niger', '(B) Nigeria', '(C) Chad'], 1),
    ('The climate changes', ['(A) mate', '(B) lim', '(C) rate'], -1),
    ('Lima, Peru is meant', ['(A) Lima', '(B) Lima, Peru', '(C) Lima, Ohio'], 1),
    ('Yes, it does.', ['(A) Yes', '(B) No'], 0),
    ('No.', ['(A) Yes', '(B) No'], 1),
    ('答えは1200です', ['(A) 12', '(B) 1200'], 1),
    ('リマです', ['(A) プリマス', '(B) リマ'], 1),
    ('プリマスです', ['(A) プリマス', '(B) リマ'], 0),
    ('서울입니다', ['(A) 부산', '(B) 서울'], 1),
    ('2', ['1. Paris', '2. Lima'], 1),
    ('The answer is 2.', ['(1) Paris', '(2) Lima'], 1),
    ('(ব)', ['(ক) ঢাকা', '(খ) লিমা'], -1),
    ('উত্তর: (খ)', ['(ক) ঢাকা', '(খ) লিমা'], 1),
    ('B', ['Paris', 'Lima'], -1),
    ('(B)', ['Paris', 'Lima'], -1),
  ],
)  # fmt: skip
def test_options_of_all_kinds(text, choices, option):
  assert strict(text, choices) == option


@pytest.mark.parametrize(
  'language, letters, sentence',
  [
    ('ar', 'أبجد', 'الإجابة الصحيحة هي ({})'), ('fa', 'ابجد', 'پاسخ صحیح: {}'),
    ('ur', 'ابجد', 'درست جواب ({}) ہے'), ('hi', 'कखगघ', 'सही उत्तर ({}) है'),
    ('bn', 'কখগঘ', 'সঠিক উত্তর: ({})'), ('ta', 'அஆஇஈ', 'சரியான விடை ({})'),
    ('te', 'అఆఇఈ', 'సమాధానం: ({})'), ('th', 'กขคง', 'คำตอบคือ ข้อ {}'),
    ('ru', 'АБВГ', 'Правильный ответ: {}'), ('el', 'ΑΒΓΔ', 'Απάντηση: {}'),
    ('he', 'אבגד', 'התשובה היא ({})'), ('zh', '甲乙丙丁', '答案是{}。'),
    ('ja', 'アイウエ', '答えは（{}）です。'), ('ko', '가나다라', '정답: ({})'),
    ('zh', '①②③④', '正确答案为{}'), ('en', 'ＡＢＣＤ', 'Answer：{}'),
  ],
)  # fmt: skip
def test_letters_of_other_scripts(language, letters, sentence):
  for option, letter in enumerate(letters):
    assert strict(sentence.format(letter), CITIES, language) == option


@hypothesis.given(
  st.text(max_size=80), st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=6)
)
def test_any_text_is_read_or_not(text, texts):
  choices = [f'({letter}) {option}' for letter, option in zip('ABCDEF', texts)]
  assert -1 <= strict(text, choices) < len(choices)
  assert strict(f'<think>{text}', choices) == -1 or '</' in text or '[/' in text or '<|' in text


@pytest.mark.parametrize(
  'text, rest',
  [
    ('<think>a</think>b', 'b'), ('a</think>b', 'b'), ('<think>a', ''), ('b', 'b'),
    ('<thinking>x</thinking>\nb', '\nb'), ('[THINK]x[/THINK]b', 'b'), ('<Think>x</THINK> b', ' b'),
    ('<think>a</think>b<think>c', 'b'), ('<think>a</think><think>b</think>c', 'c'),
  ],
)  # fmt: skip
def test_thoughts_are_left_out(text, rest):
  assert without_thoughts(text) == rest
