-- A morning at a support desk. Tickets come in groups of a few; each row wakes the agents that care.
insert into public.tickets (customer, plan, subject, body) values
('Halvorsen Marine', 'enterprise', 'Production is down since 07:40', 'All our dashboards answer 503 since 07:40 UTC. Forty people cannot work. Please call us back at once.'),
('Anouk Peeters', 'free', 'How do I change my avatar?', 'I looked in the profile page but there is only a grey circle. Is there a way to upload a picture?'),
('Bright & Daughters', 'team', 'Charged twice in March', 'Our card statement shows two payments of 49 EUR on 3 March, invoices 20931 and 20932. Please refund one of them.'),
('Kofi Mensah', 'free', 'Password reset mail never arrives', 'I asked for a reset link four times today. Nothing in spam either. I am locked out of my account.');

insert into public.tickets (customer, plan, subject, body) values
('Nordlicht Energie', 'enterprise', 'Suspicious logins from unknown country', 'Our audit log shows eleven successful logins for two of our admins from an address we do not know. We fear a breach.'),
('Priya Raman', 'team', 'CSV export cuts off after 10,000 rows', 'The file ends in the middle of row 10,001 without an error. The same report in the browser shows 14,212 rows.'),
('Tomas Vesely', 'free', 'Love the new editor', 'No question, only thanks. The new editor made my week. Keep going!'),
('Greenfield School', 'team', 'Discount for schools?', 'We are a public school with 25 teachers. Do you have an education price, and what papers do you need?');

insert into public.tickets (customer, plan, subject, body) values
('Okada Logistics', 'enterprise', 'API returns 500 for every shipment update', 'PUT /shipments fails with status 500 since your release of last night. Our trucks drive without new orders.'),
('Mara Lind', 'free', 'Dark mode?', 'Is there a dark mode, or is it planned? The white background hurts my eyes at night.'),
('Quill Accounting', 'team', 'VAT number missing on invoice', 'Invoice 20877 does not show our VAT number, so our auditor does not accept it. Can you issue it again?'),
('Jorge Campos', 'free', 'App crashes when I rotate the phone', 'Android 14, version 6.2.1. Open a note, rotate the phone, the app closes. Happens every time.');

insert into public.tickets (customer, plan, subject, body) values
('Stellar Dental', 'team', 'Cannot invite a colleague', 'The invite button says "limit reached", but we pay for ten seats and use seven.'),
('Fenwick Law', 'enterprise', 'Data processing agreement', 'Our compliance team needs the signed data processing agreement and the list of subprocessors before Friday.'),
('Ines Duarte', 'free', 'Delete my account please', 'I do not use it any more. Please delete the account and all data about me, as the GDPR says.'),
('Baltic Foods', 'team', 'Webhooks arrive an hour late', 'Since Tuesday our order webhooks come 50 to 70 minutes late. Nothing changed on our side.');

insert into public.tickets (customer, plan, subject, body) values
('Rosa Marchetti', 'free', 'Where is the tutorial?', 'The welcome mail mentions a video tutorial, but the link leads to an empty page.'),
('Copperline Bank', 'enterprise', 'Urgent: users see the data of others', 'Two of our clients report that after signing in they saw the account list of another client. This is a security incident for us. We need an answer within the hour.'),
('Yusuf Demir', 'team', 'Upgrade from team to enterprise', 'We grow to 60 people in May. What would enterprise cost us, and can we keep our workspace?'),
('Lena Vogt', 'free', 'Typo in the German translation', 'In the settings it says "Benachrichtigugen". There is an n missing.');

insert into public.tickets (customer, plan, subject, body) values
('Harbor Clinic', 'enterprise', 'Single sign-on loop', 'After the certificate change our staff are redirected between the sign-in pages without end. About 300 people cannot log in.'),
('Pavel Orlov', 'free', 'Import from a spreadsheet', 'How can I import my old list? It is an xlsx file with about 400 lines.'),
('Sundara Yoga', 'team', 'Refund for unused month', 'We cancelled on 28 February and were charged on 1 March all the same. Please refund the 49 EUR.'),
('Mirror Studios', 'team', 'Search finds nothing', 'Since this morning the search answers "no results" for every word, even for titles that I see on the screen.');

insert into public.tickets (customer, plan, subject, body) values
('Ada Nwosu', 'free', 'Student plan', 'I read about a student plan in your forum. Is it still available, and how do I apply?'),
('Ironbridge Steel', 'enterprise', 'Data loss after the maintenance', 'After the maintenance window of Sunday, all records of 14 and 15 March are missing from our workspace. Backups are with you.'),
('Chiara Fontana', 'free', 'Mobile notifications twice', 'Every reminder arrives two times on my phone. One a minute after the other.'),
('Lowland Cycling', 'team', 'Change the billing address', 'We moved. The new address is Kanaalstraat 12, Utrecht. Please put it on the next invoice.');

insert into public.tickets (customer, plan, subject, body) values
('Peak Insurance', 'enterprise', 'Slow reports at month end', 'The month-end report takes 18 minutes instead of two. It finishes, but our deadline is at noon.'),
('Samir Haddad', 'free', 'Cannot verify my e-mail', 'The verification link says "expired" right after it arrives. Tried in three browsers.'),
('Juniper Travel', 'team', 'Calendar shows the wrong time zone', 'Our bookings in Lisbon are shown an hour off since the clocks changed. Customers stand before closed doors.'),
('Elin Sandberg', 'free', 'Idea: keyboard shortcuts', 'A shortcut to archive a note would save me hundreds of clicks a week.');

insert into public.tickets (customer, plan, subject, body) values
('Delta Robotics', 'enterprise', 'Rate limit too low for our key', 'We get status 429 at 100 requests a second although our contract says 500. Our line stops each time.'),
('Oakwood Parents', 'free', 'Share a list read-only', 'Can I share a list with the parents of the class so that they can read it, but not change it?'),
('Vertex Games', 'team', 'Payment fails with a new card', 'The new company card is refused with "processor error 2044". The bank says that nothing arrives there.'),
('Aurora Pharma', 'enterprise', 'Audit trail has gaps', 'For validation we need every change with its author. Entries between 9 and 10 March are missing.');

insert into public.tickets (customer, plan, subject, body) values
('Noor Bakker', 'free', 'Unsubscribe from the newsletter', 'I clicked unsubscribe twice and still get the newsletter every Monday.'),
('Tidewater Hotels', 'team', 'Guests receive mails of other guests', 'Three guests received the confirmation of somebody else this weekend, with name and address.'),
('Benoit Leroy', 'free', 'The page is blank in Safari', 'Safari 17 shows only a white page after signing in. Firefox works.'),
('Silverlake Water', 'enterprise', 'Contact for the yearly review', 'Who is our account manager now? The last one, Ms Adeyemi, seems to have left.');
